// SPDX-License-Identifier: GPL-2.0
/*
 * VMBus driver for the probe device: the mechanism, without the policy.
 *
 * The probe device (docs/probe.md) exists to try a VMBus host, above all its
 * save and restore. Each of its two channels becomes a character device
 * through which a program sends and receives single packets; vmbus_probe.h
 * describes it. Nothing is read from a ring unless the program asks, so that
 * a program that stops reading leaves the ring full.
 *
 * Lifetime: a port lives until both the vmbus device and the last open file
 * have let go of it. @lock orders every use of the channel against its
 * removal; once @hdev is NULL the channel may be freed and is not touched.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

#include "vmbus_probe_internal.h"

#define PROBE_CLASS		GUID_INIT(0xb1a1c3f0, 0x5c2e, 0x4b6e, 0x9d, 0x53, \
					  0x0d, 0x9f, 0x5a, 0x6c, 0x7e, 0x21)
#define PROBE_MAGIC		0x42525056	/* "VPRB" */
#define PROBE_VERSION		1

/* Small rings fill soon, and a full ring is what the probe is after. */
#define PROBE_DATA_RING		SZ_16K
#define PROBE_CONTROL_RING	SZ_8K

#define PROBE_POOL_PAGES	1024

/* After each packet: the ring offset of its start. */
#define PROBE_TRAILER		sizeof(u64)

static void probe_port_free(struct kref *ref)
{
	kfree(container_of(ref, struct probe_port, ref));
}

/* Runs in the channel's tasklet. Whoever polls looks at the ring itself. */
static void probe_on_channel(void *context)
{
	struct probe_port *port = context;

	if (!probe_exchange_event(port))
		wake_up_interruptible(&port->wait);
}

static void probe_pool_free(struct probe_port *port)
{
	u32 i;

	if (!port->pool)
		return;
	for (i = 0; i < PROBE_POOL_PAGES && port->pool[i]; i++)
		__free_page(port->pool[i]);
	kvfree(port->pool);
	port->pool = NULL;
}

/* Single pages, so that a buffer of several is scattered in guest memory. */
static int probe_pool_alloc(struct probe_port *port)
{
	u32 i;

	port->pool = kvcalloc(PROBE_POOL_PAGES, sizeof(*port->pool), GFP_KERNEL);
	if (!port->pool)
		return -ENOMEM;
	for (i = 0; i < PROBE_POOL_PAGES; i++) {
		port->pool[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!port->pool[i]) {
			probe_pool_free(port);
			return -ENOMEM;
		}
	}
	return 0;
}

static void probe_channel_close(struct probe_port *port)
{
	lockdep_assert_held(&port->lock);
	if (!port->open)
		return;
	port->open = false;
	vmbus_close(port->hdev->channel);
	probe_gpadls_end(port);
}

static int probe_channel_open(struct probe_port *port)
{
	struct vmbus_channel *channel;
	u32 size = VMBUS_RING_SIZE(port->ring_data);
	int ret;

	if (!port->hdev)
		return -ENODEV;
	if (port->open)
		return -EISCONN;

	channel = port->hdev->channel;
	/* The default batched mode runs its tasklet until the ring is empty. */
	set_channel_read_mode(channel, HV_CALL_DIRECT);
	/* A packet larger than this would be cut, and the ring lost. */
	channel->max_pkt_size = port->ring_data;
	port->need = 0;
	port->spoiled = false;
	ret = vmbus_open(channel, size, size, NULL, 0, probe_on_channel, port);
	if (!ret)
		port->open = true;
	return ret;
}

int probe_usable(const struct probe_port *port)
{
	if (!port->hdev || port->hdev->channel->rescind)
		return -ENODEV;
	return port->open ? 0 : -ENOTCONN;
}

int probe_sendable(const struct probe_port *port)
{
	int ret = probe_usable(port);

	return !ret && port->spoiled ? -EPIPE : ret;
}

/*
 * Ask the host for an interrupt when it has freed @bytes. The host publishes
 * its read index and then reads pending_send_sz; here pending_send_sz comes
 * first and the index after the barrier, in poll(). One of the two sees what
 * the other wrote.
 */
static void probe_want_room(struct probe_port *port, u32 bytes)
{
	port->need = bytes;
	set_channel_pending_send_size(port->hdev->channel, bytes);
}

static int probe_sent(struct probe_port *port, int ret, u32 bytes, u32 options)
{
	if (ret == -EAGAIN) {
		if (options & VMBUS_PROBE_WAIT)
			probe_want_room(port, bytes);
	} else if (!ret && port->need) {
		probe_want_room(port, 0);
	}
	return ret;
}

/* Take the payload of a packet with @header bytes of headers into port->packet. */
static int probe_take_payload(struct probe_port *port, u64 data, u32 size, u32 header, u32 *bytes)
{
	if (size > port->ring_data)
		return -EMSGSIZE;
	*bytes = header + ALIGN(size, sizeof(u64)) + PROBE_TRAILER;
	/* A full ring keeps 8 bytes free: it must not look like an empty one. */
	if (*bytes > port->ring_data - 2 * sizeof(u64))
		return -EMSGSIZE;
	if (copy_from_user(port->packet, u64_to_user_ptr(data), size))
		return -EFAULT;
	return 0;
}

static int probe_send(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_send req;
	u32 bytes;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (req.options & ~VMBUS_PROBE_WAIT || req.reserved)
		return -EINVAL;
	ret = probe_sendable(port);
	if (!ret)
		ret = probe_take_payload(port, req.data, req.size,
					 sizeof(struct vmpacket_descriptor), &bytes);
	if (ret)
		return ret;

	ret = vmbus_sendpacket(port->hdev->channel, port->packet, req.size, req.tid,
			       req.type, req.flags);
	return probe_sent(port, ret, bytes, req.options);
}

static int probe_send_gpa(struct probe_port *port, void __user *arg)
{
	struct vmbus_packet_mpb_array *desc;
	struct vmbus_probe_send_gpa req;
	u32 i, count, header, bytes;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (req.options & ~(VMBUS_PROBE_WAIT | VMBUS_PROBE_RAW_PFNS))
		return -EINVAL;
	if (!req.length || req.length > SZ_64K || req.offset >= HV_HYP_PAGE_SIZE)
		return -EINVAL;
	ret = probe_sendable(port);
	if (ret)
		return ret;

	count = HVPFN_UP(req.offset + req.length);
	if (count > VMBUS_PROBE_MAX_PAGES)
		return -EINVAL;
	header = struct_size(desc, range.pfn_array, count);
	ret = probe_take_payload(port, req.data, req.size, header, &bytes);
	if (ret)
		return ret;

	desc = kzalloc(header, GFP_KERNEL);
	if (!desc)
		return -ENOMEM;
	desc->rangecount = 1;
	desc->range.len = req.length;
	desc->range.offset = req.offset;
	for (i = 0; i < count; i++) {
		if (req.options & VMBUS_PROBE_RAW_PFNS) {
			desc->range.pfn_array[i] = req.pages[i];
		} else if (port->pool && req.pages[i] < PROBE_POOL_PAGES) {
			desc->range.pfn_array[i] = page_to_hvpfn(port->pool[req.pages[i]]);
		} else {
			kfree(desc);
			return -EINVAL;
		}
	}
	ret = vmbus_sendpacket_mpb_desc(port->hdev->channel, desc, header, port->packet,
					req.size, req.tid);
	kfree(desc);
	return probe_sent(port, ret, bytes, req.options);
}

static int probe_recv(struct probe_port *port, void __user *arg)
{
	const struct vmpacket_descriptor *desc = port->packet;
	struct vmbus_probe_recv req;
	u32 length, offset;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (req.capacity < port->ring_data)
		return -EINVAL;
	ret = probe_usable(port);
	if (ret)
		return ret;

	/* Tells the host of the room too, if the host is waiting for it. */
	ret = vmbus_recvpacket_raw(port->hdev->channel, port->packet, port->ring_data,
				   &length, &req.tid);
	if (ret)
		return ret;
	if (!length)
		return -EAGAIN;

	offset = desc->offset8 << 3;
	req.type = desc->type;
	req.flags = desc->flags;
	req.size = length - offset;
	if (copy_to_user(u64_to_user_ptr(req.data), port->packet + offset, req.size) ||
	    copy_to_user(arg, &req, sizeof(req)))
		return -EFAULT;
	return 0;
}

static int probe_drain(struct probe_port *port)
{
	int ret = probe_sendable(port);

	if (!ret)
		probe_want_room(port, port->ring_data - sizeof(u64));
	return ret;
}

/* What vmbus_sendpacket() would never write. */
static int probe_spoil(struct probe_port *port, void __user *arg)
{
	struct vmpacket_descriptor desc = {};
	struct hv_ring_buffer_info *ring;
	struct vmbus_probe_spoil req;
	unsigned long flags;
	u32 start, end;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	ret = probe_sendable(port);
	if (ret)
		return ret;

	ring = &port->hdev->channel->outbound;
	spin_lock_irqsave(&ring->ring_lock, flags);
	switch (req.what) {
	case VMBUS_PROBE_SPOIL_WRITE_INDEX:
		end = req.value;
		break;
	case VMBUS_PROBE_SPOIL_LENGTH8:
		end = sizeof(desc) + PROBE_TRAILER;
		if (req.value > U16_MAX)
			ret = -EINVAL;
		else if (hv_get_bytes_to_write(ring) <= end)
			ret = -EAGAIN;
		if (ret)
			break;
		desc.type = VM_PKT_DATA_INBAND;
		desc.flags = VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED;
		desc.offset8 = sizeof(desc) >> 3;
		desc.len8 = req.value;
		start = ring->ring_buffer->write_index;
		/* The data pages are mapped twice in a row: no wrap to mind. */
		memcpy(hv_get_ring_buffer(ring) + start, &desc, sizeof(desc));
		put_unaligned((u64)start << 32, (u64 *)(hv_get_ring_buffer(ring) + start +
							sizeof(desc)));
		end = (start + end) % ring->ring_datasize;
		break;
	default:
		ret = -EINVAL;
		break;
	}
	if (!ret) {
		port->spoiled = true;
		/* The packet first, then the index that makes it visible. */
		virt_mb();
		WRITE_ONCE(ring->ring_buffer->write_index, end);
	}
	spin_unlock_irqrestore(&ring->ring_lock, flags);
	if (!ret)
		vmbus_setevent(port->hdev->channel);
	return probe_sent(port, ret, sizeof(desc) + PROBE_TRAILER, VMBUS_PROBE_WAIT);
}

static int probe_info(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_info info = {
		.role = port->role,
		.pair = port->pair,
		.send_ring = port->ring_data,
		.recv_ring = port->ring_data,
		.pool_pages = port->pool ? PROBE_POOL_PAGES : 0,
	};

	if (!port->hdev)
		return -ENODEV;
	info.channel_id = port->hdev->channel->offermsg.child_relid;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long probe_fop_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct probe_port *port = file->private_data;
	void __user *uarg = (void __user *)arg;
	long ret;

	mutex_lock(&port->lock);
	switch (cmd) {
	case VMBUS_PROBE_INFO:
		ret = probe_info(port, uarg);
		break;
	case VMBUS_PROBE_OPEN:
		ret = probe_channel_open(port);
		break;
	case VMBUS_PROBE_SEND:
		ret = probe_send(port, uarg);
		break;
	case VMBUS_PROBE_SEND_GPA:
		ret = probe_send_gpa(port, uarg);
		break;
	case VMBUS_PROBE_RECV:
		ret = probe_recv(port, uarg);
		break;
	case VMBUS_PROBE_DRAIN:
		ret = probe_drain(port);
		break;
	case VMBUS_PROBE_SPOIL:
		ret = probe_spoil(port, uarg);
		break;
	case VMBUS_PROBE_CLOSE:
		ret = probe_usable(port);
		if (!ret)
			probe_channel_close(port);
		break;
	case VMBUS_PROBE_GPADL_MAKE:
		ret = probe_gpadl_make(port, uarg);
		break;
	case VMBUS_PROBE_GPADL_READ:
		ret = probe_gpadl_read(port, uarg);
		break;
	case VMBUS_PROBE_GPADL_FREE:
		ret = probe_gpadl_free(port, uarg);
		break;
	case VMBUS_PROBE_TIME_PACKETS:
		ret = probe_time_packets(port, uarg);
		break;
	case VMBUS_PROBE_TIME_GPADLS:
		ret = probe_time_gpadls(port, uarg);
		break;
	default:
		ret = -ENOTTY;
		break;
	}
	mutex_unlock(&port->lock);
	return ret;
}

static __poll_t probe_fop_poll(struct file *file, poll_table *wait)
{
	struct probe_port *port = file->private_data;
	struct vmbus_channel *channel;
	__poll_t mask = 0;

	poll_wait(file, &port->wait, wait);

	mutex_lock(&port->lock);
	if (probe_usable(port)) {
		mask = EPOLLERR | EPOLLHUP;
	} else {
		channel = port->hdev->channel;
		/*
		 * The host signals a packet only if it found the ring empty,
		 * and room only if it found pending_send_sz set. So what this
		 * side published last (its read index, pending_send_sz) comes
		 * before what it now looks at.
		 */
		virt_mb();
		if (hv_get_bytes_to_read(&channel->inbound) >= sizeof(struct vmpacket_descriptor))
			mask |= EPOLLIN | EPOLLRDNORM;
		if (!port->spoiled && hv_get_bytes_to_write(&channel->outbound) > port->need)
			mask |= EPOLLOUT | EPOLLWRNORM;
	}
	mutex_unlock(&port->lock);
	return mask;
}

static int probe_fop_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct probe_port *port = file->private_data;

	if (!port->pool)
		return -ENXIO;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* The flags became constant in 6.3. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
#else
	vma->vm_flags |= VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP;
#endif
	return vm_map_pages(vma, port->pool, PROBE_POOL_PAGES);
}

/* misc_open() holds its lock around this call, so the port cannot go meanwhile. */
static int probe_fop_open(struct inode *inode, struct file *file)
{
	struct probe_port *port = container_of(file->private_data, struct probe_port, misc);
	int ret = 0;

	mutex_lock(&port->lock);
	if (port->claimed) {
		ret = -EBUSY;
		goto out;
	}
	port->packet = kvmalloc(port->ring_data, GFP_KERNEL);
	if (!port->packet)
		ret = -ENOMEM;
	else if (port->role == VMBUS_PROBE_ROLE_DATA)
		ret = probe_pool_alloc(port);
	if (ret) {
		kvfree(port->packet);
		port->packet = NULL;
		goto out;
	}
	port->claimed = true;
	kref_get(&port->ref);
	file->private_data = port;
out:
	mutex_unlock(&port->lock);
	return ret ? ret : nonseekable_open(inode, file);
}

static int probe_fop_release(struct inode *inode, struct file *file)
{
	struct probe_port *port = file->private_data;

	mutex_lock(&port->lock);
	probe_channel_close(port);
	/* Only now is the host done with the external buffers. */
	probe_pool_free(port);
	kvfree(port->packet);
	port->packet = NULL;
	port->claimed = false;
	mutex_unlock(&port->lock);
	kref_put(&port->ref, probe_port_free);
	return 0;
}

static const struct file_operations probe_fops = {
	.owner = THIS_MODULE,
	.open = probe_fop_open,
	.release = probe_fop_release,
	.unlocked_ioctl = probe_fop_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.poll = probe_fop_poll,
	.mmap = probe_fop_mmap,
};

static const guid_t probe_class = PROBE_CLASS;

static int probe_read_offer(struct hv_device *hdev, u32 *role, u32 *pair)
{
	const u8 *offer = hdev->channel->offermsg.offer.u.std.user_def;
	u32 magic = get_unaligned_le32(offer);
	u16 version = get_unaligned_le16(offer + 4);

	/* Bound by hand, through new_id: a device of another class. */
	if (!guid_equal(&hdev->dev_type, &probe_class)) {
		*role = VMBUS_PROBE_ROLE_FOREIGN;
		*pair = 0;
		return 0;
	}
	*role = get_unaligned_le16(offer + 6);
	*pair = get_unaligned_le32(offer + 8);
	if (magic != PROBE_MAGIC || version != PROBE_VERSION ||
	    (*role != VMBUS_PROBE_ROLE_DATA && *role != VMBUS_PROBE_ROLE_CONTROL)) {
		dev_err(&hdev->device, "unknown offer: magic %#x version %u role %u\n",
			magic, version, *role);
		return -ENODEV;
	}
	return 0;
}

static int probe_probe(struct hv_device *hdev, const struct hv_vmbus_device_id *id)
{
	struct probe_port *port;
	const char *what;
	u32 role, pair;
	int ret;

	ret = probe_read_offer(hdev, &role, &pair);
	if (ret)
		return ret;

	port = kzalloc(sizeof(*port), GFP_KERNEL);
	if (!port)
		return -ENOMEM;
	kref_init(&port->ref);
	mutex_init(&port->lock);
	spin_lock_init(&port->exchange_lock);
	init_waitqueue_head(&port->wait);
	port->hdev = hdev;
	port->role = role;
	port->pair = pair;
	port->ring_data = PROBE_DATA_RING;
	if (role == VMBUS_PROBE_ROLE_DATA) {
		what = "data";
	} else if (role == VMBUS_PROBE_ROLE_CONTROL) {
		what = "control";
		port->ring_data = PROBE_CONTROL_RING;
	} else {
		what = "foreign";
	}
	if (!port->pair)
		snprintf(port->name, sizeof(port->name), "vmbus-probe-%s", what);
	else
		snprintf(port->name, sizeof(port->name), "vmbus-probe-%s-%u", what, port->pair);
	port->misc.minor = MISC_DYNAMIC_MINOR;
	port->misc.name = port->name;
	port->misc.fops = &probe_fops;
	port->misc.parent = &hdev->device;
	port->misc.mode = 0600;

	hv_set_drvdata(hdev, port);
	ret = misc_register(&port->misc);
	if (ret) {
		dev_err(&hdev->device, "cannot register %s: %d\n", port->name, ret);
		hv_set_drvdata(hdev, NULL);
		kref_put(&port->ref, probe_port_free);
	}
	return ret;
}

static void probe_take_leave(struct hv_device *hdev)
{
	struct probe_port *port = hv_get_drvdata(hdev);

	misc_deregister(&port->misc);

	mutex_lock(&port->lock);
	probe_channel_close(port);
	port->hdev = NULL;
	mutex_unlock(&port->lock);

	wake_up_interruptible(&port->wait);
	hv_set_drvdata(hdev, NULL);
	kref_put(&port->ref, probe_port_free);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
static void probe_remove(struct hv_device *hdev)
{
	probe_take_leave(hdev);
}
#else
static int probe_remove(struct hv_device *hdev)
{
	probe_take_leave(hdev);
	return 0;
}
#endif

/* Hibernation ends the conversation; the program sees POLLHUP and starts anew. */
static int probe_suspend(struct hv_device *hdev)
{
	struct probe_port *port = hv_get_drvdata(hdev);

	mutex_lock(&port->lock);
	probe_channel_close(port);
	mutex_unlock(&port->lock);
	wake_up_interruptible(&port->wait);
	return 0;
}

static int probe_resume(struct hv_device *hdev)
{
	return 0;
}

static const struct hv_vmbus_device_id probe_ids[] = {
	{ .guid = PROBE_CLASS },
	{ }
};
MODULE_DEVICE_TABLE(vmbus, probe_ids);

static struct hv_driver probe_driver = {
	.name = KBUILD_MODNAME,
	.id_table = probe_ids,
	.probe = probe_probe,
	.remove = probe_remove,
	.suspend = probe_suspend,
	.resume = probe_resume,
	.driver = {
		.probe_type = PROBE_PREFER_ASYNCHRONOUS,
	},
};

static int __init probe_init(void)
{
	return vmbus_driver_register(&probe_driver);
}

static void __exit probe_exit(void)
{
	vmbus_driver_unregister(&probe_driver);
}

module_init(probe_init);
module_exit(probe_exit);

MODULE_DESCRIPTION("VMBus probe device");
MODULE_LICENSE("GPL");
