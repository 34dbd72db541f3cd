// SPDX-License-Identifier: MIT
/* The probe driver's character device, see vmbus_probe.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "port.h"

/*
 * Through the kernel log, not the terminal: a line written to the serial
 * terminal is cut in two when the kernel prints at the same moment, and these
 * lines are read by machines. Level 1 passes "quiet".
 */
void say(const char *format, ...)
{
	static int log = -1;
	char line[900];
	va_list args;
	int size, written;

	if (log < 0)
		log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	size = snprintf(line, sizeof(line), "%svmbus-guest: ", log < 0 ? "" : "<1>");
	va_start(args, format);
	written = vsnprintf(line + size, sizeof(line) - size - 1, format, args);
	va_end(args);
	if (written < 0)
		return;
	size += written;
	if (size > (int)sizeof(line) - 2)
		size = sizeof(line) - 2;
	line[size++] = '\n';
	if (write(log < 0 ? STDOUT_FILENO : log, line, size) < 0 && log >= 0)
		log = -1;
}

static void *must_alloc(size_t size)
{
	void *memory = malloc(size);

	if (!memory) {
		say("probe error: out of memory");
		exit(EXIT_FAILURE);
	}
	return memory;
}

bool port_claim(struct port *port, const char *path)
{
	memset(port, 0, sizeof(*port));
	port->fd = open(path, O_RDWR | O_CLOEXEC);
	if (port->fd < 0)
		return false;
	if (ioctl(port->fd, VMBUS_PROBE_INFO, &port->info) < 0) {
		port_close(port);
		return false;
	}
	port->buffer = must_alloc(port->info.recv_ring);
	port->scratch = must_alloc(port->info.send_ring + sizeof(struct message));
	return true;
}

bool port_open(struct port *port)
{
	return ioctl(port->fd, VMBUS_PROBE_OPEN) == 0;
}

void port_close(struct port *port)
{
	int reason = errno;

	if (port->fd >= 0)
		close(port->fd);
	free(port->buffer);
	free(port->scratch);
	memset(port, 0, sizeof(*port));
	port->fd = -1;
	errno = reason;
}

uint32_t port_max_body(const struct port *port)
{
	/* Descriptor, trailer and the 16 bytes that no packet may fill. */
	return port->info.send_ring - 16 - 8 - 16 - sizeof(struct message);
}

static enum port_result port_result(struct port *port, int status, uint32_t options)
{
	if (status == 0)
		return PORT_OK;
	switch (errno) {
	case EAGAIN:
		if (options & VMBUS_PROBE_WAIT)
			port->blocked = true;
		return PORT_WAIT;
	case EPIPE:
		port->spoiled = true;
		return PORT_WAIT;
	case ENODEV:
	case ENOTCONN:
		return PORT_GONE;
	default:
		say("probe error: %s", strerror(errno));
		exit(EXIT_FAILURE);
	}
}

enum port_result port_send(struct port *port, enum packet_type type, uint16_t packet_flags,
			   uint64_t tid, const struct message *message, const void *body,
			   const struct extent *extent, uint32_t options)
{
	uint32_t size = sizeof(*message);
	int status;

	memcpy(port->scratch, message, sizeof(*message));
	if (extent) {
		struct vmbus_probe_send_gpa send = {
			.tid = tid,
			.data = (uintptr_t)port->scratch,
			.size = size,
			.options = options,
			.length = extent->length,
			.offset = extent->offset,
		};

		memcpy(send.pages, extent->pages, sizeof(send.pages));
		status = ioctl(port->fd, VMBUS_PROBE_SEND_GPA, &send);
	} else {
		struct vmbus_probe_send send = {
			.tid = tid,
			.data = (uintptr_t)port->scratch,
			.type = type,
			.flags = packet_flags,
			.options = options,
		};

		if (body) {
			memcpy(port->scratch + size, body, message->body_size);
			size += message->body_size;
		}
		send.size = size;
		status = ioctl(port->fd, VMBUS_PROBE_SEND, &send);
	}
	return port_result(port, status, options);
}

enum port_result port_receive(struct port *port, struct packet *packet)
{
	struct vmbus_probe_recv recv = {
		.data = (uintptr_t)port->buffer,
		.capacity = port->info.recv_ring,
	};
	enum port_result result = port_result(port, ioctl(port->fd, VMBUS_PROBE_RECV, &recv), 0);

	packet->tid = recv.tid;
	packet->type = recv.type;
	packet->flags = recv.flags;
	packet->size = recv.size;
	packet->payload = port->buffer;
	return result;
}

enum port_result port_spoil(struct port *port, uint32_t what, uint32_t value)
{
	struct vmbus_probe_spoil spoil = { .what = what, .value = value };
	int status = ioctl(port->fd, VMBUS_PROBE_SPOIL, &spoil);

	return port_result(port, status, VMBUS_PROBE_WAIT);
}

bool port_gpadl(struct port *port, unsigned long order, uint32_t slot, uint8_t *buffer,
		uint32_t *size, uint32_t *handle)
{
	struct vmbus_probe_gpadl gpadl = {
		.data = (uintptr_t)buffer,
		.size = *size,
		.slot = slot,
	};

	if (ioctl(port->fd, order, &gpadl) < 0) {
		say("probe error: GPADL %u: %s", slot, strerror(errno));
		return false;
	}
	*size = gpadl.size;
	*handle = gpadl.handle;
	return true;
}

bool port_reopen(struct port *port)
{
	port->blocked = false;
	port->spoiled = false;
	return ioctl(port->fd, VMBUS_PROBE_CLOSE) == 0 && port_open(port);
}

void port_drain(struct port *port, int timeout_ms)
{
	struct pollfd pollfd = { .fd = port->fd, .events = POLLOUT };

	if (ioctl(port->fd, VMBUS_PROBE_DRAIN) == 0 && poll(&pollfd, 1, timeout_ms) == 0)
		say("probe error: the host has not read the last answer in %d ms", timeout_ms);
}
