/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the VMBus probe driver share. */
#ifndef _VMBUS_PROBE_INTERNAL_H
#define _VMBUS_PROBE_INTERNAL_H

#include <linux/hyperv.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "vmbus_probe.h"

struct probe_exchange;

struct probe_gpadl {
	void *buffer;		/* NULL: the slot is free */
	u32 size;
	struct vmbus_gpadl gpadl;
};

struct probe_port {
	struct kref ref;
	struct miscdevice misc;
	char name[32];
	wait_queue_head_t wait;
	u32 role;
	u32 pair;
	u32 ring_data;		/* bytes of data in each of the two rings */

	struct mutex lock;	/* guards all below and both ends of the rings */
	struct hv_device *hdev;	/* NULL: the device is gone */
	bool claimed;		/* a file is open */
	bool open;		/* the channel is open */
	bool spoiled;		/* the outgoing ring has been broken on purpose */
	u32 need;		/* POLLOUT means more room than this */
	void *packet;		/* one packet, of ring_data bytes at most */
	struct page **pool;
	struct probe_gpadl gpadls[VMBUS_PROBE_GPADLS];

	/*
	 * Set while packets are timed: the channel's tasklet then reads the
	 * ring, and @packet is its own. Written with @lock held.
	 */
	spinlock_t exchange_lock;
	struct probe_exchange *exchange;
};

/* Zero if the channel can be used; @lock is held. */
int probe_usable(const struct probe_port *port);
int probe_sendable(const struct probe_port *port);

/* From the channel's tasklet; false if nothing is being timed. */
bool probe_exchange_event(struct probe_port *port);

/* The ioctls of vmbus_probe_latency.c; @lock is held. */
int probe_time_packets(struct probe_port *port, void __user *arg);
int probe_time_gpadls(struct probe_port *port, void __user *arg);

/* The ioctls of vmbus_probe_gpadl.c; @lock is held. */
int probe_gpadl_make(struct probe_port *port, void __user *arg);
int probe_gpadl_read(struct probe_port *port, void __user *arg);
int probe_gpadl_free(struct probe_port *port, void __user *arg);
/* Take back what is left, of a channel that has just been closed. */
void probe_gpadls_end(struct probe_port *port);

#endif
