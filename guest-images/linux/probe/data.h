/* SPDX-License-Identifier: MIT */
/*
 * The data channel, docs/probe.md section 3, and its ledger, section 5.
 *
 * Incoming packets are always read, unless the host has ordered a stall: if
 * this side waited for room to answer before it read on, and the host did the
 * same, neither would ever move. Answers that find no room wait in `due`, and
 * requests wait for the answers.
 */
#ifndef PROBE_DATA_H
#define PROBE_DATA_H

#include "port.h"

/* A request of ours that the host has not answered; its transaction id is its slot + 1. */
struct request {
	uint64_t seq; /* 0: the slot is free */
	uint32_t size;
	bool gpa;
	bool write_back;
	struct extent extent;
	uint32_t next_free;
};

/* An answer that we have not sent. */
struct answer {
	uint64_t tid;
	uint64_t seq;
	uint32_t crc;
	bool bad;
};

struct answer_queue {
	struct answer *entry;
	uint32_t size; /* power of two, or 0 */
	uint32_t head;
	uint32_t count;
};

struct data {
	struct port port;
	uint64_t ledger[LEDGER_WORDS];

	/* What RUN ordered, and how far it has come. */
	struct run_body run;
	uint64_t run_sent;
	uint64_t run_gpa;
	uint64_t run_host_requests;
	uint32_t next_size;
	bool running;
	bool stalled;

	uint64_t next_seq;
	uint64_t expected_host_seq;

	struct request *request;
	uint32_t requests;
	uint32_t first_free;
	uint32_t outstanding;

	struct answer_queue owed; /* held back as RUN ordered */
	struct answer_queue due; /* to be sent as soon as there is room */

	uint8_t *pool;
	uint32_t *free_page;
	uint32_t free_pages;
};

/* Takes over an open port. False with a reason in errno. */
bool data_init(struct data *data);
void data_free(struct data *data);

/* Send what may be sent now. PORT_WAIT: nothing more until something arrives or is freed. */
enum port_result data_send(struct data *data);

/* Read up to @budget packets. */
enum port_result data_receive(struct data *data, unsigned int budget);

void data_run(struct data *data, const struct run_body *run);
enum port_result data_stall(struct data *data, const struct stall_body *order,
			    struct stall_answer *answer);
void data_resume(struct data *data);
/* Send no new request, owe nothing, read on. */
void data_finish(struct data *data);
bool data_finished(const struct data *data, uint64_t host_last_seq);

/* Close the channel and open it again, with a new ledger. PORT_GONE: it is not open now. */
enum port_result data_reopen(struct data *data);

/*
 * Orders about the GPADL @number. False if it cannot be done. @handle is its id,
 * @crc the CRC of what it holds, or held when the host had let go of it.
 */
bool data_gpadl(struct data *data, unsigned int type, const struct gpadl_body *order,
		uint32_t *handle, uint32_t *crc);

/* PORT_WAIT: no room yet, try again. */
enum port_result data_malform(struct data *data, enum malform_kind kind);

/* The ledger as of now, with the words that are not running counts filled in. */
const uint64_t *data_ledger(struct data *data);

#endif
