// SPDX-License-Identifier: MIT
/* The control channel of the probe, see control.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "control.h"

enum { READY_TID = 1, READY_SEQ = 1, MAX_CONTROL_BODY = 256 };

struct outgoing {
	struct outgoing *next;
	enum packet_type type;
	uint16_t flags;
	uint64_t tid;
	struct message message;
	uint8_t body[MAX_CONTROL_BODY];
};

_Static_assert(LEDGER_WORDS * sizeof(uint64_t) <= MAX_CONTROL_BODY, "a ledger must fit");

static void enqueue(struct control *control, struct outgoing outgoing, const void *body,
		    size_t size)
{
	struct outgoing *copy = malloc(sizeof(*copy));

	if (!copy) {
		say("probe error: out of memory");
		exit(EXIT_FAILURE);
	}
	*copy = outgoing;
	copy->next = NULL;
	if (size)
		memcpy(copy->body, body, size);
	copy->message.magic = MESSAGE_MAGIC;
	copy->message.body_size = (uint32_t)size;
	copy->message.body_crc = crc32(0, body, size);
	*control->last = copy;
	control->last = &copy->next;
}

static void answer(struct control *control, uint64_t tid, unsigned int type, uint64_t seq,
		   uint64_t arg, const void *body, size_t size)
{
	struct outgoing outgoing = {
		.type = PACKET_COMPLETION,
		.tid = tid,
		.message = { .type = type | ANSWER_BIT, .seq = seq, .arg = arg },
	};

	enqueue(control, outgoing, body, size);
}

enum port_result control_start(struct control *control)
{
	struct outgoing outgoing = {
		.type = PACKET_IN_BAND,
		.flags = PACKET_COMPLETION_REQUESTED,
		.tid = READY_TID,
		.message = { .type = CTL_READY, .seq = READY_SEQ },
	};
	struct {
		uint32_t version;
		uint32_t zero;
		char text[MAX_CONTROL_BODY - 8];
	} body = { .version = PROTOCOL_VERSION };
	struct utsname system;
	int length = 0;

	if (uname(&system) == 0)
		length = snprintf(body.text, sizeof(body.text), "%s %s %s", system.sysname,
				  system.release, system.machine);
	if (length >= (int)sizeof(body.text))
		length = sizeof(body.text) - 1;

	control->last = &control->first;
	enqueue(control, outgoing, &body, offsetof(typeof(body), text) + (size_t)length);
	return control_send(control, NULL);
}

void control_free(struct control *control)
{
	while (control->first) {
		struct outgoing *outgoing = control->first;

		control->first = outgoing->next;
		free(outgoing);
	}
	port_close(&control->port);
}

static void say_ledger(const char *when, const uint64_t *ledger)
{
	char words[LEDGER_WORDS * 21 + 1];
	int size = 0;

	for (int i = 0; i < LEDGER_WORDS; i++)
		size += sprintf(words + size, " %" PRIu64, ledger[i]);
	say("probe %s ledger%s", when, words);
}

static enum port_result flush(struct control *control)
{
	while (control->first && !control->port.blocked) {
		struct outgoing *outgoing = control->first;
		enum port_result result;

		result = port_send(&control->port, outgoing->type, outgoing->flags, outgoing->tid,
				   &outgoing->message, outgoing->body, NULL, VMBUS_PROBE_WAIT);
		if (result != PORT_OK)
			return result;
		control->first = outgoing->next;
		if (!control->first)
			control->last = &control->first;
		free(outgoing);
	}
	return PORT_OK;
}

enum port_result control_send(struct control *control, struct data *data)
{
	enum port_result result;

	if (control->finishing && data_finished(data, control->host_last_seq)) {
		const uint64_t *ledger = data_ledger(data);

		control->finishing = false;
		answer(control, control->finish_tid, CTL_FINISH, control->finish_seq, ARG_GOOD,
		       ledger, LEDGER_WORDS * sizeof(*ledger));
		say_ledger("finished", ledger);
	}
	result = flush(control);
	if (result == PORT_OK && control->deed && !control->first && !data->port.blocked) {
		result = data_malform(data, control->deed);
		if (result == PORT_OK || data->port.spoiled)
			control->deed = 0;
	}
	return result;
}

/* Orders with a body. False if the body is short or its contents make no sense. */
static bool body_read(const struct message *message, const uint8_t *from, void *body, size_t size)
{
	if (message->body_size < size)
		return false;
	memcpy(body, from, size);
	return true;
}

static enum port_result obey(struct control *control, struct data *data, uint64_t tid,
			     const struct message *message, const uint8_t *body)
{
	struct stall_answer stalled;
	struct gpadl_body gpadl;
	struct stall_body stall;
	enum port_result result;
	struct timespec now;
	struct run_body run;
	uint32_t word, crc;
	uint64_t wide;

	switch (message->type) {
	case CTL_RUN:
		if (!body_read(message, body, &run, sizeof(run)) || run.body_max > MAX_BODY ||
		    control->finishing)
			break;
		data_run(data, &run);
		say("probe running window=%u gpa_every=%u owe_every=%u body_max=%u total=%" PRIu64,
		    run.window, run.gpa_every, run.owe_every, run.body_max, run.total);
		answer(control, tid, message->type, message->seq, ARG_GOOD, NULL, 0);
		return PORT_OK;
	case CTL_STALL:
		if (!body_read(message, body, &stall, sizeof(stall)) || control->finishing)
			break;
		result = data_stall(data, &stall, &stalled);
		if (result != PORT_OK)
			return result;
		say("probe stalled requests=%u answers=%u owed=%u", stalled.requests,
		    stalled.answers, stalled.owed);
		answer(control, tid, message->type, message->seq, ARG_GOOD, &stalled,
		       sizeof(stalled));
		return PORT_OK;
	case CTL_RESUME:
		data_resume(data);
		say("probe resumed");
		answer(control, tid, message->type, message->seq, ARG_GOOD, NULL, 0);
		return PORT_OK;
	case CTL_FINISH:
		if (!body_read(message, body, &wide, sizeof(wide)) || control->finishing)
			break;
		control->finishing = true;
		control->finish_tid = tid;
		control->finish_seq = message->seq;
		control->host_last_seq = wide;
		data_finish(data);
		return PORT_OK;
	case CTL_LEDGER:
		answer(control, tid, message->type, message->seq, ARG_GOOD, data_ledger(data),
		       LEDGER_WORDS * sizeof(uint64_t));
		return PORT_OK;
	case CTL_MALFORM:
		if (!body_read(message, body, &word, sizeof(word)) || word < MALFORM_MAGIC ||
		    word > MALFORM_LENGTH || control->deed)
			break;
		control->deed = word;
		say("probe malform kind=%u", word);
		answer(control, tid, message->type, message->seq, ARG_GOOD, NULL, 0);
		return PORT_OK;
	case CTL_PING:
		clock_gettime(CLOCK_MONOTONIC, &now);
		wide = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
		answer(control, tid, message->type, message->seq, ARG_GOOD, &wide, sizeof(wide));
		return PORT_OK;
	case CTL_GPADL_MAKE:
	case CTL_GPADL_CHECK:
	case CTL_GPADL_FREE:
		memset(&gpadl, 0, sizeof(gpadl));
		if (!body_read(message, body, &gpadl,
			       message->type == CTL_GPADL_MAKE ? sizeof(gpadl) :
								 sizeof(gpadl.number)) ||
		    !data_gpadl(data, message->type, &gpadl, &word, &crc))
			break;
		if (message->type != CTL_GPADL_MAKE)
			word = crc;
		say("probe gpadl order=%u number=%u", message->type, gpadl.number);
		answer(control, tid, message->type, message->seq, ARG_GOOD, &word, sizeof(word));
		return PORT_OK;
	case CTL_REOPEN:
		if (control->finishing)
			break;
		result = data_reopen(data);
		if (result != PORT_OK)
			return result;
		say("probe reopened");
		answer(control, tid, message->type, message->seq, ARG_GOOD, NULL, 0);
		return PORT_OK;
	case CTL_EXIT:
		if (!body_read(message, body, &word, sizeof(word)) || word > EXIT_POWEROFF)
			break;
		control->exiting = true;
		control->action = word;
		answer(control, tid, message->type, message->seq, ARG_GOOD, NULL, 0);
		return PORT_OK;
	}
	answer(control, tid, message->type, message->seq, ARG_BAD, NULL, 0);
	return PORT_OK;
}

enum port_result control_receive(struct control *control, struct data *data, unsigned int budget)
{
	enum port_result result = PORT_OK;
	struct message message;
	struct packet packet;

	while (budget-- && result == PORT_OK && !control->exiting) {
		result = port_receive(&control->port, &packet);
		if (result != PORT_OK)
			break;
		if (packet.size < sizeof(message)) {
			data->ledger[LEDGER_MALFORMED]++;
			continue;
		}
		memcpy(&message, packet.payload, sizeof(message));
		if (message.magic != MESSAGE_MAGIC ||
		    message.body_size > packet.size - sizeof(message) ||
		    crc32(0, packet.payload + sizeof(message), message.body_size) !=
			    message.body_crc) {
			data->ledger[LEDGER_MALFORMED]++;
		} else if (packet.type == PACKET_IN_BAND &&
			   packet.flags == PACKET_COMPLETION_REQUESTED) {
			result = obey(control, data, packet.tid, &message,
				      packet.payload + sizeof(message));
		} else if (packet.type == PACKET_COMPLETION && packet.tid == READY_TID &&
			   message.type == (CTL_READY | ANSWER_BIT) && !control->ready) {
			control->ready = true;
			say("probe ready");
		} else {
			data->ledger[LEDGER_MALFORMED]++;
		}
	}
	return result;
}
