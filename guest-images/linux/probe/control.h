/* SPDX-License-Identifier: MIT */
/* The control channel, docs/probe.md section 4: the host's orders and our answers. */
#ifndef PROBE_CONTROL_H
#define PROBE_CONTROL_H

#include "data.h"

struct outgoing;

struct control {
	struct port port;
	struct outgoing *first; /* messages that wait for room */
	struct outgoing **last;
	bool ready; /* the host has answered READY */

	/* FINISH is answered later, when its condition holds. */
	bool finishing;
	uint64_t finish_tid;
	uint64_t finish_seq;
	uint64_t host_last_seq;

	enum malform_kind deed; /* 0: none; done once its answer is in the ring */
	bool exiting;
	enum exit_action action;
};

/* Takes over an open port and sends READY. */
enum port_result control_start(struct control *control);
void control_free(struct control *control);

/* Send what waits for room, FINISH's answer and ordered deeds included. */
enum port_result control_send(struct control *control, struct data *data);
enum port_result control_receive(struct control *control, struct data *data, unsigned int budget);

#endif
