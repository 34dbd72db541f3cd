// SPDX-License-Identifier: GPL-2.0
/*
 * Timing of a VMBus host, as a driver of the guest sees it.
 *
 * A packet's time runs from just before it is written to the ring until the
 * channel callback that finds the answer is entered: doorbell, host and
 * interrupt. Process switches of this guest are not in it: back to back, the
 * callback sends the next packet itself; with a gap, the process sleeps before
 * a packet and not between a packet and the reading of the clock.
 *
 * A control message's time does have the wake-up of the process in it, as that
 * is how the drivers of this guest see them.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vmbus_probe_internal.h"

/* Longest wait for one answer. */
#define PROBE_ANSWER_TIMEOUT	(5 * HZ)

struct probe_exchange {
	struct vmbus_probe_time_packets req;
	void *payload;
	u32 *times;		/* nanoseconds, one for each packet */
	u32 done;
	u64 start;
	int error;
	struct completion event;	/* all are done, or the one after a gap */
};

/* One answer is out at a time, so the ring has room. @exchange_lock is held. */
static void probe_exchange_send(struct probe_port *port, struct probe_exchange *exchange)
{
	const struct vmbus_probe_time_packets *req = &exchange->req;

	exchange->start = ktime_get_ns();
	exchange->error = vmbus_sendpacket(port->hdev->channel, exchange->payload, req->size,
					   req->tid, req->type, req->flags);
	if (exchange->error)
		complete(&exchange->event);
}

static void probe_exchange_receive(struct probe_port *port, struct probe_exchange *exchange,
				   u64 now)
{
	bool answered = false;
	u32 length;
	u64 tid;
	int ret;

	if (exchange->error || exchange->done == exchange->req.count)
		return;
	for (;;) {
		ret = vmbus_recvpacket_raw(port->hdev->channel, port->packet, port->ring_data,
					   &length, &tid);
		if (ret) {
			exchange->error = ret;
			complete(&exchange->event);
			return;
		}
		if (!length)
			break;
		answered = true;
	}
	/* A host may interrupt without need. */
	if (!answered)
		return;
	exchange->times[exchange->done++] = min_t(u64, now - exchange->start, U32_MAX);
	if (exchange->req.gap_us || exchange->done == exchange->req.count)
		complete(&exchange->event);
	else
		probe_exchange_send(port, exchange);
}

bool probe_exchange_event(struct probe_port *port)
{
	struct probe_exchange *exchange;
	u64 now = ktime_get_ns();

	spin_lock_bh(&port->exchange_lock);
	exchange = port->exchange;
	if (exchange)
		probe_exchange_receive(port, exchange, now);
	spin_unlock_bh(&port->exchange_lock);
	return exchange;
}

static int probe_exchange_wait(struct probe_port *port, struct probe_exchange *exchange)
{
	u32 seen;
	long ret;

	do {
		seen = READ_ONCE(exchange->done);
		ret = wait_for_completion_interruptible_timeout(&exchange->event,
								PROBE_ANSWER_TIMEOUT);
		if (ret < 0)
			return ret;
		if (port->hdev->channel->rescind)
			return -ENODEV;
		/* Many packets may take longer than one may. */
	} while (!ret && READ_ONCE(exchange->done) != seen);
	return ret ? READ_ONCE(exchange->error) : -ETIMEDOUT;
}

static int probe_exchange_run(struct probe_port *port, struct probe_exchange *exchange)
{
	const struct vmbus_probe_time_packets *req = &exchange->req;
	u32 rounds = req->gap_us ? req->count : 1;
	int ret = 0;

	while (rounds-- && !ret) {
		if (req->gap_us)
			usleep_range(req->gap_us, req->gap_us + req->gap_us / 8);
		spin_lock_bh(&port->exchange_lock);
		probe_exchange_send(port, exchange);
		spin_unlock_bh(&port->exchange_lock);
		ret = probe_exchange_wait(port, exchange);
	}
	return ret;
}

int probe_time_packets(struct probe_port *port, void __user *arg)
{
	struct probe_exchange exchange = {};
	struct vmbus_probe_time_packets *req = &exchange.req;
	int ret;

	if (copy_from_user(req, arg, sizeof(*req)))
		return -EFAULT;
	if (!req->count || req->count > VMBUS_PROBE_MAX_TIMES || req->size > SZ_1K ||
	    req->gap_us > VMBUS_PROBE_MAX_GAP_US)
		return -EINVAL;
	ret = probe_sendable(port);
	if (ret)
		return ret;

	init_completion(&exchange.event);
	exchange.times = kvcalloc(req->count, sizeof(*exchange.times), GFP_KERNEL);
	exchange.payload = memdup_user(u64_to_user_ptr(req->data), req->size);
	if (IS_ERR(exchange.payload)) {
		ret = PTR_ERR(exchange.payload);
		exchange.payload = NULL;
	} else if (!exchange.times) {
		ret = -ENOMEM;
	} else {
		spin_lock_bh(&port->exchange_lock);
		port->exchange = &exchange;
		spin_unlock_bh(&port->exchange_lock);

		ret = probe_exchange_run(port, &exchange);

		spin_lock_bh(&port->exchange_lock);
		port->exchange = NULL;
		spin_unlock_bh(&port->exchange_lock);
	}
	if (!ret && copy_to_user(u64_to_user_ptr(req->times), exchange.times,
				 req->count * sizeof(*exchange.times)))
		ret = -EFAULT;
	kfree(exchange.payload);
	kvfree(exchange.times);
	return ret;
}

/* One GPADL of one page: a message each to make it and to take it back. */
static int probe_time_gpadl(struct vmbus_channel *channel, void *page, u32 times[2])
{
	struct vmbus_gpadl gpadl = {};
	u64 start = ktime_get_ns(), made;
	int ret;

	ret = vmbus_establish_gpadl(channel, page, HV_HYP_PAGE_SIZE, &gpadl);
	if (ret)
		return ret;
	made = ktime_get_ns();
	ret = vmbus_teardown_gpadl(channel, &gpadl);
	times[0] = min_t(u64, made - start, U32_MAX);
	times[1] = min_t(u64, ktime_get_ns() - made, U32_MAX);
	return ret;
}

int probe_time_gpadls(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_time_gpadls req;
	u32 __user *times;
	u32 pair[2];
	void *page;
	int ret;
	u32 i;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!req.count || req.count > VMBUS_PROBE_MAX_TIMES || req.reserved)
		return -EINVAL;
	ret = probe_usable(port);
	if (ret)
		return ret;
	page = (void *)__get_free_page(GFP_KERNEL | __GFP_ZERO);
	if (!page)
		return -ENOMEM;
	times = u64_to_user_ptr(req.times);
	for (i = 0; i < req.count && !ret; i++) {
		ret = probe_time_gpadl(port->hdev->channel, page, pair);
		if (!ret && copy_to_user(times + 2 * i, pair, sizeof(pair)))
			ret = -EFAULT;
		if (!ret && signal_pending(current))
			ret = -EINTR;
	}
	free_page((unsigned long)page);
	return ret;
}
