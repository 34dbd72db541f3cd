// SPDX-License-Identifier: MIT
/* The data channel of the probe, see data.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "data.h"

enum {
	PAGE = 4096,
	NO_SLOT = UINT32_MAX,
	/* More requests than any ring holds; a host that keeps them all gets no more. */
	MAX_OUTSTANDING = 65536,
	/* Beyond this many owed, the oldest is answered. */
	OWED_LIMIT = 8,
	BODY_SIZE_STEP = 37,
};

/* No request has this transaction id. */
#define UNUSED_TID 0x5052420000000000u

/* Above any RAM, within the 40 bits that a page frame number can have. */
#define PFN_OUTSIDE_RAM 0xffffffffffu

static void *grow(void *memory, size_t count, size_t size)
{
	memory = reallocarray(memory, count, size);
	if (!memory) {
		say("probe error: out of memory");
		exit(EXIT_FAILURE);
	}
	return memory;
}

static void queue_push(struct answer_queue *queue, struct answer answer)
{
	if (queue->count == queue->size) {
		uint32_t old = queue->size;

		queue->size = old ? 2 * old : 64;
		queue->entry = grow(queue->entry, queue->size, sizeof(*queue->entry));
		/* What had wrapped to the front now follows the old end. */
		for (uint32_t i = 0; i < queue->head; i++)
			queue->entry[old + i] = queue->entry[i];
	}
	queue->entry[(queue->head + queue->count++) & (queue->size - 1)] = answer;
}

static struct answer *queue_first(struct answer_queue *queue)
{
	return queue->count ? &queue->entry[queue->head] : NULL;
}

static void queue_pop(struct answer_queue *queue)
{
	queue->head = (queue->head + 1) & (queue->size - 1);
	queue->count--;
}

static void release_owed(struct data *data, uint32_t keep)
{
	while (data->owed.count > keep) {
		queue_push(&data->due, *queue_first(&data->owed));
		queue_pop(&data->owed);
	}
}

bool data_init(struct data *data)
{
	uint32_t pages = data->port.info.pool_pages;
	uint32_t random = 1;

	data->pool = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
			  data->port.fd, 0);
	if (data->pool == MAP_FAILED) {
		data->pool = NULL;
		return false;
	}
	data->free_page = grow(NULL, pages, sizeof(*data->free_page));
	/*
	 * Consecutive pool pages are often consecutive in guest memory. Shuffled,
	 * a buffer of several pages is scattered for sure.
	 */
	for (uint32_t i = 0; i < pages; i++) {
		uint32_t other;

		random = random * 1664525 + 1013904223;
		other = (random >> 8) % (i + 1);
		data->free_page[i] = data->free_page[other];
		data->free_page[other] = i;
	}
	data->free_pages = pages;
	data->first_free = NO_SLOT;
	data->next_seq = 1;
	data->expected_host_seq = 1;
	return true;
}

void data_free(struct data *data)
{
	if (data->pool)
		munmap(data->pool, (size_t)data->port.info.pool_pages * PAGE);
	free(data->free_page);
	free(data->request);
	free(data->owed.entry);
	free(data->due.entry);
	port_close(&data->port);
}

/* A run of bytes of an extent that lies in one page; the next one starts at @at + *@size. */
static uint8_t *extent_piece(const struct data *data, const struct extent *extent, uint32_t at,
			     uint32_t *size)
{
	uint32_t position = extent->offset + at;

	*size = PAGE - position % PAGE;
	if (*size > extent->length - at)
		*size = extent->length - at;
	return data->pool + extent->pages[position / PAGE] * PAGE + position % PAGE;
}

static uint32_t extent_pages(const struct extent *extent)
{
	return (extent->offset + extent->length + PAGE - 1) / PAGE;
}

/* False if there are not enough free pages, which answers will bring back. */
static bool extent_take(struct data *data, struct extent *extent, uint32_t length, uint32_t offset)
{
	extent->length = length;
	extent->offset = offset;
	if (extent_pages(extent) > data->free_pages)
		return false;
	for (uint32_t i = 0; i < extent_pages(extent); i++)
		extent->pages[i] = data->free_page[--data->free_pages];
	return true;
}

static void extent_release(struct data *data, const struct extent *extent)
{
	/* In reverse, so that a request that did not fit takes the same pages again. */
	for (uint32_t i = extent_pages(extent); i-- > 0;)
		data->free_page[data->free_pages++] = (uint32_t)extent->pages[i];
}

static uint32_t slot_take(struct data *data)
{
	uint32_t slot = data->first_free;

	if (slot == NO_SLOT) {
		uint32_t old = data->requests;

		if (old == MAX_OUTSTANDING)
			return NO_SLOT;
		data->requests = old ? 2 * old : 64;
		data->request = grow(data->request, data->requests, sizeof(*data->request));
		for (uint32_t i = old; i < data->requests; i++) {
			data->request[i].seq = 0;
			data->request[i].next_free = i + 1 < data->requests ? i + 1 : NO_SLOT;
		}
		slot = old;
	}
	data->first_free = data->request[slot].next_free;
	return slot;
}

static void slot_release(struct data *data, uint32_t slot)
{
	data->request[slot].seq = 0;
	data->request[slot].next_free = data->first_free;
	data->first_free = slot;
}

/* Whether each byte of the external buffer is what it must be after the answer. */
static bool extent_right(const struct data *data, const struct request *request)
{
	const struct extent *extent = &request->extent;
	uint8_t change = request->write_back ? WRITE_BACK_XOR : 0;
	uint32_t size;

	for (uint32_t at = 0; at < extent->length; at += size) {
		const uint8_t *piece = extent_piece(data, extent, at, &size);

		for (uint32_t i = 0; i < size; i++) {
			if (piece[i] != (body_byte(request->seq, at + i, SALT_GUEST) ^ change))
				return false;
		}
	}
	return true;
}

/* The CRC that a right answer to @request has. */
static uint32_t expected_crc(const struct request *request)
{
	uint8_t change = request->write_back ? WRITE_BACK_XOR : 0;
	uint8_t piece[256];
	uint32_t crc = 0, size;

	for (uint32_t at = 0; at < request->size; at += size) {
		size = request->size - at;
		if (size > sizeof(piece))
			size = sizeof(piece);
		body_fill(piece, at, size, request->seq, SALT_GUEST);
		for (uint32_t i = 0; i < size; i++)
			piece[i] ^= change;
		crc = crc32(crc, piece, size);
	}
	return crc;
}

/* Send the next numbered request. PORT_WAIT: no room, or too many outstanding. */
static enum port_result send_request(struct data *data, uint32_t options)
{
	static uint8_t body[MAX_BODY];
	const struct run_body *run = &data->run;
	struct message message = {
		.magic = MESSAGE_MAGIC,
		.type = G_REQUEST,
		.seq = data->next_seq,
		.body_size = data->next_size,
	};
	bool gpa = run->gpa_every && (data->run_sent + 1) % run->gpa_every == 0;
	struct request *request;
	enum port_result result;
	uint32_t slot, size;

	slot = slot_take(data);
	if (slot == NO_SLOT)
		return PORT_WAIT;
	request = &data->request[slot];
	request->gpa = gpa;
	request->write_back = gpa && data->run_gpa % 2 == 1;
	if (gpa) {
		/* An external buffer of no bytes has no page to name. */
		if (!message.body_size)
			message.body_size = 1;
		if (!extent_take(data, &request->extent, message.body_size,
				 data->next_seq * 97 % PAGE)) {
			slot_release(data, slot);
			return PORT_WAIT;
		}
		for (uint32_t at = 0; at < message.body_size; at += size) {
			uint8_t *piece = extent_piece(data, &request->extent, at, &size);

			body_fill(piece, at, size, message.seq, SALT_GUEST);
			message.body_crc = crc32(message.body_crc, piece, size);
		}
		if (request->write_back)
			message.flags = MESSAGE_WRITE_BACK;
	} else {
		if (message.body_size > port_max_body(&data->port))
			message.body_size = port_max_body(&data->port);
		body_fill(body, 0, message.body_size, message.seq, SALT_GUEST);
		message.body_crc = crc32(0, body, message.body_size);
	}
	request->seq = message.seq;
	request->size = message.body_size;

	result = port_send(&data->port, PACKET_IN_BAND, PACKET_COMPLETION_REQUESTED, slot + 1,
			   &message, body, gpa ? &request->extent : NULL, options);
	if (result != PORT_OK) {
		if (gpa)
			extent_release(data, &request->extent);
		slot_release(data, slot);
		return result;
	}
	data->next_seq++;
	data->outstanding++;
	data->run_sent++;
	data->run_gpa += gpa;
	data->next_size += BODY_SIZE_STEP;
	if (data->next_size > run->body_max)
		data->next_size %= run->body_max + 1;
	data->ledger[gpa ? LEDGER_SENT_GPA : LEDGER_SENT_IN_BAND]++;
	data->ledger[LEDGER_SENT_DIGEST] += mix(message.seq);
	return PORT_OK;
}

static enum port_result send_answer(struct data *data, const struct answer *answer,
				    uint32_t options)
{
	struct message message = {
		.magic = MESSAGE_MAGIC,
		.type = H_ANSWER,
		.seq = answer->seq,
		.body_crc = answer->crc,
		.arg = answer->bad ? ARG_BAD : ARG_GOOD,
	};
	enum port_result result = port_send(&data->port, PACKET_COMPLETION, 0, answer->tid,
					    &message, NULL, NULL, options);

	if (result == PORT_OK) {
		data->ledger[LEDGER_HOST_ANSWERED]++;
		data->ledger[LEDGER_HOST_ANSWERED_DIGEST] += mix(answer->seq);
	}
	return result;
}

static bool may_request(const struct data *data)
{
	return data->running && data->outstanding < data->run.window &&
	       (!data->run.total || data->run_sent < data->run.total);
}

enum port_result data_send(struct data *data)
{
	enum port_result result = PORT_OK;

	if (data->stalled || data->port.blocked || data->port.spoiled)
		return PORT_WAIT;
	while (data->due.count && result == PORT_OK) {
		result = send_answer(data, queue_first(&data->due), VMBUS_PROBE_WAIT);
		if (result == PORT_OK)
			queue_pop(&data->due);
	}
	while (result == PORT_OK && may_request(data))
		result = send_request(data, VMBUS_PROBE_WAIT);
	return result;
}

static void receive_answer(struct data *data, const struct packet *packet,
			   const struct message *message)
{
	struct request *request = NULL;
	uint32_t slot;

	if (message->type != G_ANSWER || message->body_size || message->flags) {
		data->ledger[LEDGER_MALFORMED]++;
		return;
	}
	if (packet->tid && packet->tid <= data->requests)
		request = &data->request[packet->tid - 1];
	if (!request || !request->seq || request->seq != message->seq) {
		data->ledger[LEDGER_UNKNOWN_ANSWERS]++;
		return;
	}
	slot = (uint32_t)(packet->tid - 1);

	data->ledger[LEDGER_ANSWERED]++;
	data->ledger[LEDGER_ANSWERED_DIGEST] += mix(message->seq);
	if (message->arg != ARG_GOOD || message->body_crc != expected_crc(request))
		data->ledger[LEDGER_WRONG_ANSWERS]++;
	if (request->gpa) {
		if (!extent_right(data, request))
			data->ledger[LEDGER_WRONG_BUFFERS]++;
		extent_release(data, &request->extent);
	}
	slot_release(data, slot);
	data->outstanding--;
}

static void receive_numbered(struct data *data, const struct packet *packet,
			     const struct message *message)
{
	bool request = message->type == H_REQUEST;
	const uint8_t *body = packet->payload + sizeof(*message);
	struct answer answer = { .tid = packet->tid, .seq = message->seq };

	if ((!request && message->type != H_NOTIFY) || !message->seq || message->flags ||
	    packet->flags != (request ? PACKET_COMPLETION_REQUESTED : 0)) {
		data->ledger[LEDGER_MALFORMED]++;
		return;
	}

	if (message->seq < data->expected_host_seq) {
		data->ledger[LEDGER_HOST_TWICE]++;
	} else {
		data->ledger[LEDGER_HOST_LOST] += message->seq - data->expected_host_seq;
		data->expected_host_seq = message->seq + 1;
		data->ledger[LEDGER_HOST_HIGHEST] = message->seq;
	}
	data->ledger[request ? LEDGER_HOST_REQUESTS : LEDGER_HOST_NOTIFIES]++;
	data->ledger[LEDGER_HOST_DIGEST] += mix(message->seq);

	answer.crc = crc32(0, body, message->body_size);
	answer.bad = answer.crc != message->body_crc;
	for (uint32_t i = 0; i < message->body_size; i++) {
		if (body[i] != body_byte(message->seq, i, SALT_HOST))
			answer.bad = true;
	}
	if (answer.bad)
		data->ledger[LEDGER_HOST_WRONG_BODY]++;
	if (!request)
		return;

	data->run_host_requests++;
	if (data->running && data->run.owe_every &&
	    data->run_host_requests % data->run.owe_every == 0) {
		queue_push(&data->owed, answer);
		release_owed(data, OWED_LIMIT);
	} else {
		queue_push(&data->due, answer);
	}
}

enum port_result data_receive(struct data *data, unsigned int budget)
{
	enum port_result result = PORT_OK;
	struct message message;
	struct packet packet;

	while (!data->stalled && budget--) {
		result = port_receive(&data->port, &packet);
		if (result != PORT_OK)
			break;
		memset(&message, 0, sizeof(message));
		memcpy(&message, packet.payload,
		       packet.size < sizeof(message) ? packet.size : sizeof(message));
		if (packet.size < sizeof(message) || message.magic != MESSAGE_MAGIC ||
		    message.body_size > packet.size - sizeof(message))
			data->ledger[LEDGER_MALFORMED]++;
		else if (packet.type == PACKET_COMPLETION)
			receive_answer(data, &packet, &message);
		else if (packet.type == PACKET_IN_BAND)
			receive_numbered(data, &packet, &message);
		else
			data->ledger[LEDGER_MALFORMED]++;
	}
	return result;
}

void data_run(struct data *data, const struct run_body *run)
{
	data->run = *run;
	data->running = true;
	data->run_sent = 0;
	data->run_gpa = 0;
	data->run_host_requests = 0;
	data->next_size = 0;
	if (!run->owe_every)
		release_owed(data, 0);
}

enum port_result data_stall(struct data *data, const struct stall_body *order,
			    struct stall_answer *answer)
{
	enum port_result result = PORT_OK;

	memset(answer, 0, sizeof(*answer));
	data->stalled = true;
	while (answer->requests < order->requests && result == PORT_OK) {
		result = send_request(data, 0);
		answer->requests += result == PORT_OK;
	}
	if (result == PORT_WAIT)
		result = PORT_OK;
	/* Answers that are due already are older than any that is owed. */
	while (answer->answers < order->answers && result == PORT_OK) {
		struct answer_queue *queue = data->due.count ? &data->due : &data->owed;

		if (!queue->count)
			break;
		result = send_answer(data, queue_first(queue), 0);
		if (result == PORT_OK) {
			queue_pop(queue);
			answer->answers++;
		}
	}
	answer->owed = data->due.count + data->owed.count;
	return result == PORT_WAIT ? PORT_OK : result;
}

void data_resume(struct data *data)
{
	data->stalled = false;
	/* What had no room before the stall may have room now: just try. */
	data->port.blocked = false;
}

void data_finish(struct data *data)
{
	data->running = false;
	release_owed(data, 0);
	data_resume(data);
}

bool data_finished(const struct data *data, uint64_t host_last_seq)
{
	return !data->outstanding && !data->due.count && !data->owed.count &&
	       data->expected_host_seq > host_last_seq;
}

/* What the host had not answered or been answered is over with the channel. */
enum port_result data_reopen(struct data *data)
{
	uint32_t pages = data->port.info.pool_pages;
	struct port port = data->port;
	uint32_t *free_page = data->free_page;
	uint8_t *pool = data->pool;

	if (!port_reopen(&port)) {
		say("probe error: the data channel cannot be opened again: %s", strerror(errno));
		return PORT_GONE;
	}
	for (uint32_t slot = 0; slot < data->requests; slot++) {
		struct request *request = &data->request[slot];

		if (request->seq && request->gpa)
			extent_release(data, &request->extent);
	}
	free(data->request);
	free(data->owed.entry);
	free(data->due.entry);
	memset(data, 0, sizeof(*data));
	data->port = port;
	data->pool = pool;
	data->free_page = free_page;
	data->free_pages = pages;
	data->first_free = NO_SLOT;
	data->next_seq = 1;
	data->expected_host_seq = 1;
	return PORT_OK;
}

bool data_gpadl(struct data *data, unsigned int type, const struct gpadl_body *order,
		uint32_t *handle, uint32_t *crc)
{
	static uint8_t contents[VMBUS_PROBE_MAX_GPADL];
	uint32_t size = 0;
	bool done;

	switch (type) {
	case CTL_GPADL_MAKE:
		if (!order->pages || order->pages > sizeof(contents) / PAGE)
			return false;
		size = order->pages * PAGE;
		body_fill(contents, 0, size, order->number, SALT_GUEST);
		done = port_gpadl(&data->port, VMBUS_PROBE_GPADL_MAKE, order->number, contents,
				  &size, handle);
		break;
	case CTL_GPADL_CHECK:
		done = port_gpadl(&data->port, VMBUS_PROBE_GPADL_READ, order->number, contents,
				  &size, handle);
		break;
	default:
		done = port_gpadl(&data->port, VMBUS_PROBE_GPADL_FREE, order->number, contents,
				  &size, handle);
	}
	*crc = crc32(0, contents, size);
	return done;
}

enum port_result data_malform(struct data *data, enum malform_kind kind)
{
	uint32_t ring = data->port.info.send_ring;
	struct message message = {
		.magic = MESSAGE_MAGIC,
		.type = G_REQUEST,
		.seq = data->next_seq,
		.body_size = 0,
	};
	struct extent outside = { .length = 1, .pages = { PFN_OUTSIDE_RAM } };
	uint16_t flags = PACKET_COMPLETION_REQUESTED;
	unsigned int type = PACKET_IN_BAND;

	switch (kind) {
	case MALFORM_MAGIC:
		message.magic = ~MESSAGE_MAGIC;
		break;
	case MALFORM_PACKET_TYPE:
		type = 99;
		break;
	case MALFORM_COMPLETION:
		type = PACKET_COMPLETION;
		flags = 0;
		message.type = H_ANSWER;
		break;
	case MALFORM_PFN:
		message.body_size = outside.length;
		return port_send(&data->port, type, flags, UNUSED_TID, &message, NULL, &outside,
				 VMBUS_PROBE_WAIT | VMBUS_PROBE_RAW_PFNS);
	case MALFORM_WRITE_INDEX:
		return port_spoil(&data->port, VMBUS_PROBE_SPOIL_WRITE_INDEX, ring + 8);
	case MALFORM_LENGTH:
		return port_spoil(&data->port, VMBUS_PROBE_SPOIL_LENGTH8, ring / 8 + 1);
	}
	return port_send(&data->port, type, flags, UNUSED_TID, &message, NULL, NULL,
			 VMBUS_PROBE_WAIT);
}

const uint64_t *data_ledger(struct data *data)
{
	data->ledger[LEDGER_VERSION] = LEDGER_LAYOUT;
	data->ledger[LEDGER_OWED] = data->owed.count + data->due.count;
	return data->ledger;
}
