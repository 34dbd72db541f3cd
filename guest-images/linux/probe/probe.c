// SPDX-License-Identifier: MIT
/*
 * vmbus-probe: the guest's half of the probe device, docs/probe.md.
 *
 * One loop over the two channels of one pair. All waiting is in poll(): for a
 * packet, or for room in a ring that was full. A conversation ends when the
 * host takes the device away; the program then waits for the next one, with a
 * new ledger.
 *
 * With arguments it is the guest's half of bench/latency.py instead, see latency.h.
 *
 * Exit status: 10 plus the action of the host's EXIT order (0 end, 1 reload
 * the bus driver, 2 reboot, 3 power off); 1 after an error.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "control.h"
#include "latency.h"

#define DEV "/dev"
#define DATA_NAME "vmbus-probe-data"
#define CONTROL_NAME "vmbus-probe-control"

enum {
	EXIT_ACTION_BASE = 10,
	/* Packets of one channel before the other has its turn. */
	BUDGET = 64,
	DRAIN_MS = 5000,
	RETRY_MS = 1000,
};

/* Until the device is gone (PORT_GONE) or the host orders the end (PORT_OK). */
static enum port_result converse(struct data *data, struct control *control)
{
	struct pollfd pollfd[] = { { .fd = control->port.fd }, { .fd = data->port.fd } };
	enum port_result result = control_start(control);

	while (result != PORT_GONE) {
		if (data_send(data) == PORT_GONE || control_send(control, data) == PORT_GONE)
			break;
		if (control->exiting && !control->first) {
			port_drain(&control->port, DRAIN_MS);
			return PORT_OK;
		}

		/*
		 * POLLOUT only while something waits for room: otherwise there is
		 * nearly always room, and poll() would never sleep.
		 */
		pollfd[0].events = POLLIN;
		if (control->port.blocked)
			pollfd[0].events |= POLLOUT;
		pollfd[1].events = data->stalled ? 0 : POLLIN;
		if (data->port.blocked && (!data->stalled || control->deed))
			pollfd[1].events |= POLLOUT;
		if (poll(pollfd, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			say("probe error: poll: %s", strerror(errno));
			exit(EXIT_FAILURE);
		}
		if ((pollfd[0].revents | pollfd[1].revents) & (POLLERR | POLLHUP | POLLNVAL))
			break;
		if (pollfd[0].revents & POLLOUT)
			control->port.blocked = false;
		if (pollfd[1].revents & POLLOUT)
			data->port.blocked = false;
		if (pollfd[0].revents & POLLIN)
			result = control_receive(control, data, BUDGET);
		if (result != PORT_GONE && pollfd[1].revents & POLLIN)
			result = data_receive(data, BUDGET);
	}
	return PORT_GONE;
}

/* The name of a control device in /dev, of any pair; the data device's name follows. */
static bool find_pair(char *control, char *data, size_t size)
{
	DIR *directory = opendir(DEV);
	struct dirent *entry;
	bool found = false;

	if (!directory)
		return false;
	while ((entry = readdir(directory))) {
		if (strncmp(entry->d_name, CONTROL_NAME, strlen(CONTROL_NAME)) != 0)
			continue;
		/* The first in the order of the names, whatever that of the directory. */
		snprintf(data, size, DEV "/%s", entry->d_name);
		if (!found || strcmp(data, control) < 0)
			snprintf(control, size, "%s", data);
		found = true;
	}
	closedir(directory);
	if (found)
		snprintf(data, size, DEV "/" DATA_NAME "%s",
			 control + strlen(DEV "/" CONTROL_NAME));
	return found;
}

/* Both channels claimed and open, or neither and a reason in errno. */
static bool open_pair(struct data *data, struct control *control)
{
	char control_path[300] = "", data_path[300] = "";
	bool opened;

	memset(data, 0, sizeof(*data));
	memset(control, 0, sizeof(*control));
	data->port.fd = -1;
	control->port.fd = -1;
	errno = ENOENT;
	opened = find_pair(control_path, data_path, sizeof(control_path)) &&
		 port_claim(&control->port, control_path) && port_claim(&data->port, data_path) &&
		 data_init(data) && port_open(&data->port) && port_open(&control->port);
	if (!opened) {
		int reason = errno;

		data_free(data);
		control_free(control);
		errno = reason;
	}
	return opened;
}

static void wait_for_pair(struct data *data, struct control *control)
{
	struct pollfd pollfd = { .fd = inotify_init1(IN_CLOEXEC), .events = POLLIN };
	int reported = 0;

	/* Watched before the first look, so that no device is missed. */
	if (pollfd.fd < 0 || inotify_add_watch(pollfd.fd, DEV, IN_CREATE) < 0) {
		say("probe error: cannot watch " DEV ": %s", strerror(errno));
		exit(EXIT_FAILURE);
	}
	while (!open_pair(data, control)) {
		char events[4096];
		int reason = errno;

		if (reason != reported)
			say("probe waiting for the device: %s", strerror(reason));
		reported = reason;
		/* A device that is there but cannot be opened makes no event. */
		if (poll(&pollfd, 1, reason == ENOENT ? -1 : RETRY_MS) > 0 &&
		    read(pollfd.fd, events, sizeof(events)) < 0)
			say("probe error: cannot watch " DEV ": %s", strerror(errno));
	}
	close(pollfd.fd);
}

int main(int argc, char **argv)
{
	struct control control;
	struct data data;

	if (argc > 1)
		return latency_main(argc, argv);
	for (;;) {
		enum exit_action action;
		enum port_result result;

		wait_for_pair(&data, &control);
		say("probe open data=%u control=%u pair=%u", data.port.info.channel_id,
		    control.port.info.channel_id, data.port.info.pair);
		result = converse(&data, &control);
		action = control.action;
		data_free(&data);
		control_free(&control);
		if (result == PORT_OK) {
			say("probe exit action=%u", action);
			return EXIT_ACTION_BASE + (int)action;
		}
		say("probe device gone");
	}
}
