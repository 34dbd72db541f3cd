/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * User interface of the VMBus probe driver: what the driver vmbus_probe and
 * the program vmbus-probe say to each other.
 *
 * The driver offers one character device for each channel, vmbus-probe-data
 * and vmbus-probe-control (with the number of the pair appended if that is not
 * 0), and moves packets between it and the rings. It knows nothing of the
 * numbered transactions of docs/probe.md: those are the program's. A device of
 * any other class that is bound to the driver becomes vmbus-probe-foreign.
 *
 *	open()			one opener at a time; the channel stays closed
 *	VMBUS_PROBE_OPEN	opens the channel, with empty rings
 *	mmap()			the page pool, for external buffers (data only)
 *	poll()			POLLIN: a packet can be received; POLLOUT: there is
 *				room for what was refused last; POLLERR | POLLHUP:
 *				the channel is not open, or is gone
 *	close()			closes the channel
 *
 * Once the host has rescinded the channel, every call but close() fails with
 * ENODEV.
 */
#ifndef _VMBUS_PROBE_H
#define _VMBUS_PROBE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VMBUS_PROBE_ROLE_DATA		1
#define VMBUS_PROBE_ROLE_CONTROL	2
/* A device of another class, bound to the driver through its new_id in sysfs. */
#define VMBUS_PROBE_ROLE_FOREIGN	3

/* The most pages an external buffer can have: 64 KiB at any offset. */
#define VMBUS_PROBE_MAX_PAGES		17

/**
 * struct vmbus_probe_info - what one device is
 * @role: VMBUS_PROBE_ROLE_*, from the offer
 * @pair: the number that a data and a control channel share, from the offer
 * @channel_id: the channel id (relid) of the offer
 * @send_ring: bytes of ring data, guest to host
 * @recv_ring: bytes of ring data, host to guest
 * @pool_pages: pages that mmap() gives, 0 on a control channel
 */
struct vmbus_probe_info {
	__u32 role;
	__u32 pair;
	__u32 channel_id;
	__u32 send_ring;
	__u32 recv_ring;
	__u32 pool_pages;
};

/* Ask for POLLOUT (and a host interrupt) once there is room, if there is none. */
#define VMBUS_PROBE_WAIT		0x1
/* @pages holds page frame numbers, which the driver does not look at. */
#define VMBUS_PROBE_RAW_PFNS		0x2

/**
 * struct vmbus_probe_send - one packet without external data
 * @tid: transaction id
 * @data: address of the payload
 * @size: bytes of payload
 * @type: type in the packet descriptor, any value
 * @flags: flags in the packet descriptor, any value
 * @options: VMBUS_PROBE_WAIT
 */
struct vmbus_probe_send {
	__u64 tid;
	__u64 data;
	__u32 size;
	__u16 type;
	__u16 flags;
	__u32 options;
	__u32 reserved;
};

/**
 * struct vmbus_probe_send_gpa - one GPA-direct packet with one range
 * @tid: transaction id
 * @data: address of the payload
 * @size: bytes of payload
 * @options: VMBUS_PROBE_WAIT, VMBUS_PROBE_RAW_PFNS
 * @length: bytes of external data, from 1
 * @offset: where they start in the first page
 * @pages: indices of pool pages, in the order of the data; as many as @offset
 *	and @length need
 */
struct vmbus_probe_send_gpa {
	__u64 tid;
	__u64 data;
	__u32 size;
	__u32 options;
	__u32 length;
	__u32 offset;
	__u64 pages[VMBUS_PROBE_MAX_PAGES];
};

/**
 * struct vmbus_probe_recv - one packet from the host
 * @tid: transaction id
 * @data: address of a buffer of at least @recv_ring bytes
 * @capacity: bytes of that buffer
 * @size: bytes of payload, a multiple of 8
 * @type: type in the packet descriptor
 * @flags: flags in the packet descriptor
 */
struct vmbus_probe_recv {
	__u64 tid;
	__u64 data;
	__u32 capacity;
	__u32 size;
	__u16 type;
	__u16 flags;
	__u32 reserved;
};

/* A write index of @value bytes, with a signal to the host. */
#define VMBUS_PROBE_SPOIL_WRITE_INDEX	1
/* An in-band packet whose descriptor says a length of @value units of 8 bytes. */
#define VMBUS_PROBE_SPOIL_LENGTH8	2

/**
 * struct vmbus_probe_spoil - break the guest-to-host ring on purpose
 * @what: VMBUS_PROBE_SPOIL_*
 * @value: see there
 *
 * Nothing can be sent on the channel afterwards: sending fails with EPIPE.
 */
struct vmbus_probe_spoil {
	__u32 what;
	__u32 value;
};

#define VMBUS_PROBE_MAX_TIMES		1000000
#define VMBUS_PROBE_MAX_GAP_US		1000000

/**
 * struct vmbus_probe_time_packets - send packets one by one, and time each
 * @tid: transaction id of all of them
 * @data: address of the payload of all of them
 * @times: address of @count __u32: nanoseconds from before a packet is written
 *	to the ring until the channel callback that finds its answer
 * @size: bytes of payload, at most 1024
 * @count: packets, at most VMBUS_PROBE_MAX_TIMES
 * @gap_us: microseconds of sleep before each packet, at most
 *	VMBUS_PROBE_MAX_GAP_US; 0: the callback sends the next packet at once
 * @type: type in the packet descriptor
 * @flags: flags in the packet descriptor
 *
 * The host must answer each packet with one. What it sends is read and dropped.
 */
struct vmbus_probe_time_packets {
	__u64 tid;
	__u64 data;
	__u64 times;
	__u32 size;
	__u32 count;
	__u32 gap_us;
	__u16 type;
	__u16 flags;
};

/**
 * struct vmbus_probe_time_gpadls - make and take back GPADLs, and time it
 * @times: address of @count pairs of __u32: nanoseconds of GPADL_HEADER until
 *	GPADL_CREATED, and of GPADL_TEARDOWN until GPADL_TORNDOWN
 * @count: GPADLs of one page, at most VMBUS_PROBE_MAX_TIMES
 * @reserved: 0
 */
struct vmbus_probe_time_gpadls {
	__u64 times;
	__u32 count;
	__u32 reserved;
};

/* GPADLs of one channel beside that of its rings, and the most bytes of one. */
#define VMBUS_PROBE_GPADLS		8
#define VMBUS_PROBE_MAX_GPADL		(64 * 4096)

/**
 * struct vmbus_probe_gpadl - memory of the driver's that the host can map
 * @data: address of what it holds: to be copied in (MAKE) or out (READ, FREE)
 * @size: bytes, from MAKE; a multiple of 4096, at most VMBUS_PROBE_MAX_GPADL
 * @slot: which of the VMBUS_PROBE_GPADLS
 * @handle: the GPADL's id, from MAKE
 * @reserved: 0
 *
 * FREE waits until the host has let go of the memory. A channel that is closed
 * takes its GPADLs back.
 */
struct vmbus_probe_gpadl {
	__u64 data;
	__u32 size;
	__u32 slot;
	__u32 handle;
	__u32 reserved;
};

#define VMBUS_PROBE_INFO	_IOR('V', 0xb0, struct vmbus_probe_info)
#define VMBUS_PROBE_OPEN	_IO('V', 0xb1)
/* EAGAIN: no room. EMSGSIZE: never any room. */
#define VMBUS_PROBE_SEND	_IOW('V', 0xb2, struct vmbus_probe_send)
#define VMBUS_PROBE_SEND_GPA	_IOW('V', 0xb3, struct vmbus_probe_send_gpa)
/* EAGAIN: no packet. */
#define VMBUS_PROBE_RECV	_IOWR('V', 0xb4, struct vmbus_probe_recv)
/* POLLOUT is to mean that the host has read all that was sent. */
#define VMBUS_PROBE_DRAIN	_IO('V', 0xb5)
#define VMBUS_PROBE_SPOIL	_IOW('V', 0xb6, struct vmbus_probe_spoil)
/* ETIMEDOUT: no answer. */
#define VMBUS_PROBE_TIME_PACKETS _IOW('V', 0xb7, struct vmbus_probe_time_packets)
#define VMBUS_PROBE_TIME_GPADLS	_IOW('V', 0xb8, struct vmbus_probe_time_gpadls)

/* EBUSY: the slot is in use. ENOENT: it is not. */
#define VMBUS_PROBE_GPADL_MAKE	_IOWR('V', 0xb9, struct vmbus_probe_gpadl)
#define VMBUS_PROBE_GPADL_READ	_IOWR('V', 0xba, struct vmbus_probe_gpadl)
#define VMBUS_PROBE_GPADL_FREE	_IOWR('V', 0xbb, struct vmbus_probe_gpadl)
/* Closes the channel, to be opened again. */
#define VMBUS_PROBE_CLOSE	_IO('V', 0xbc)

#endif
