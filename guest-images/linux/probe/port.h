/* SPDX-License-Identifier: MIT */
/*
 * A port is one open channel of the probe driver: sending and receiving
 * messages through the driver's character device.
 */
#ifndef PROBE_PORT_H
#define PROBE_PORT_H

#include <stdbool.h>

#include "message.h"
#include "vmbus_probe.h"

/* How a call on a port went. PORT_GONE: rescinded, closed or broken for good. */
enum port_result { PORT_OK, PORT_WAIT, PORT_GONE };

struct port {
	int fd;
	struct vmbus_probe_info info;
	bool blocked; /* the last message did not fit; cleared by POLLOUT */
	bool spoiled; /* the guest has broken its outgoing ring on request */
	uint8_t *buffer; /* one received packet */
	uint8_t *scratch; /* one packet to send */
};

struct packet {
	uint64_t tid;
	uint16_t type;
	uint16_t flags;
	uint32_t size;
	const uint8_t *payload; /* valid until the next packet is received */
};

/* A scattered external buffer: @length bytes from @offset in the first of @pages. */
struct extent {
	uint32_t length;
	uint32_t offset;
	uint64_t pages[VMBUS_PROBE_MAX_PAGES];
};

/* Both return false with a reason in errno. */
bool port_claim(struct port *port, const char *path);
bool port_open(struct port *port);
void port_close(struct port *port);

/* The largest body that a message in @port's ring can have. */
uint32_t port_max_body(const struct port *port);

/*
 * Send the message and @body. With @wait a full ring sets port->blocked and
 * has the driver report room; without, it is only reported. @extent makes the
 * packet GPA-direct; @type is then ignored.
 */
enum port_result port_send(struct port *port, enum packet_type type, uint16_t packet_flags,
			   uint64_t tid, const struct message *message, const void *body,
			   const struct extent *extent, uint32_t options);

enum port_result port_receive(struct port *port, struct packet *packet);

enum port_result port_spoil(struct port *port, uint32_t what, uint32_t value);

/*
 * Make, look at or take back the GPADL @slot with @size bytes of @buffer; @order
 * is VMBUS_PROBE_GPADL_*. False if the driver refuses, or the channel is gone.
 */
bool port_gpadl(struct port *port, unsigned long order, uint32_t slot, uint8_t *buffer,
		uint32_t *size, uint32_t *handle);

/* Close the channel and open it again, with empty rings. */
bool port_reopen(struct port *port);

/* Wait until the host has read everything sent, or @timeout_ms have passed. */
void port_drain(struct port *port, int timeout_ms);

/* One line on the console, behind "vmbus-guest: ". */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
