// SPDX-License-Identifier: MIT
/* Timing of exchanges with the host, see latency.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "latency.h"
#include "port.h"

enum { ECHO_TID = 1 };

/* The dynamic memory protocol, Linux drivers/hv/hv_balloon.c. */
struct dm_version_request {
	uint16_t type;
	uint16_t size;
	uint32_t transaction_id;
	uint32_t version;
	uint32_t is_last_attempt;
};

enum { DM_VERSION_REQUEST = 1 };
#define DM_VERSION_NONE 0xffffffffu

struct request {
	const void *payload;
	uint32_t size;
	uint16_t flags;
};

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static uint32_t percentile(const uint32_t *sorted, uint32_t count, uint32_t percent)
{
	return sorted[(uint64_t)(count - 1) * percent / 100];
}

static void report(const char *what, uint32_t *times, uint32_t count)
{
	qsort(times, count, sizeof(*times), compare);
	say("latency %s n=%u min=%u median=%u p90=%u p99=%u max=%u", what, count, times[0],
	    percentile(times, count, 50), percentile(times, count, 90),
	    percentile(times, count, 99), times[count - 1]);
}

static bool time_packets(struct port *port, const struct request *request, const char *what,
			 uint32_t count, uint32_t gap_us, uint32_t *times)
{
	struct vmbus_probe_time_packets order = {
		.tid = ECHO_TID,
		.data = (uintptr_t)request->payload,
		.times = (uintptr_t)times,
		.size = request->size,
		.count = count,
		.gap_us = gap_us,
		.type = PACKET_IN_BAND,
		.flags = request->flags,
	};

	if (!count)
		return true;
	if (ioctl(port->fd, VMBUS_PROBE_TIME_PACKETS, &order) < 0)
		return false;
	report(what, times, count);
	return true;
}

static bool time_gpadls(struct port *port, uint32_t count, uint32_t *times)
{
	struct vmbus_probe_time_gpadls order = { .times = (uintptr_t)times, .count = count };
	uint32_t *teardown = times + 2 * count;

	if (!count)
		return true;
	if (ioctl(port->fd, VMBUS_PROBE_TIME_GPADLS, &order) < 0)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		teardown[i] = times[2 * i + 1];
		times[i] = times[2 * i];
	}
	report("create", times, count);
	report("teardown", teardown, count);
	return true;
}

static bool number(const char *text, uint32_t most, uint32_t *value)
{
	char *end;
	unsigned long parsed = strtoul(text, &end, 10);

	*value = (uint32_t)parsed;
	return *text && !*end && parsed <= most;
}

int latency_main(int argc, char **argv)
{
	const struct message echo = { .magic = MESSAGE_MAGIC, .type = G_ECHO, .seq = 1 };
	const struct dm_version_request version = { .type = DM_VERSION_REQUEST,
						    .size = sizeof(version),
						    .version = DM_VERSION_NONE };
	const struct request echo_request = { &echo, sizeof(echo), PACKET_COMPLETION_REQUESTED };
	const struct request version_request = { &version, sizeof(version), 0 };
	uint32_t packets, gap_packets, gap_us, gpadls, most;
	const struct request *request;
	struct port port;
	uint32_t *times;
	char line[80];

	if (argc != 7 || strcmp(argv[1], "latency") != 0 ||
	    !number(argv[3], VMBUS_PROBE_MAX_TIMES, &packets) ||
	    !number(argv[4], VMBUS_PROBE_MAX_TIMES, &gap_packets) ||
	    !number(argv[5], VMBUS_PROBE_MAX_GAP_US, &gap_us) || (gap_packets && !gap_us) ||
	    !number(argv[6], VMBUS_PROBE_MAX_TIMES, &gpadls)) {
		say("latency error: usage: %s latency DEVICE PACKETS GAP_PACKETS GAP_US GPADLS",
		    argv[0]);
		return EXIT_FAILURE;
	}
	if (!port_claim(&port, argv[2]) || !port_open(&port)) {
		say("latency error: %s: %s", argv[2], strerror(errno));
		return EXIT_FAILURE;
	}
	request = port.info.role == VMBUS_PROBE_ROLE_FOREIGN ? &version_request : &echo_request;
	most = packets > gap_packets ? packets : gap_packets;
	times = calloc(most > 3 * gpadls ? most : 3 * gpadls, sizeof(*times));
	if (!times) {
		say("latency error: out of memory");
		return EXIT_FAILURE;
	}

	say("latency ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!time_packets(&port, request, "busy", packets, 0, times) ||
		    !time_packets(&port, request, "idle", gap_packets, gap_us, times) ||
		    !time_gpadls(&port, gpadls, times)) {
			say("latency error: %s", strerror(errno));
			return EXIT_FAILURE;
		}
		say("latency done");
	}
	free(times);
	port_close(&port);
	return EXIT_SUCCESS;
}
