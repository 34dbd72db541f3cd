// SPDX-License-Identifier: GPL-2.0
/*
 * GPADLs of the probe: memory that the host maps beside the rings, made and
 * taken back while the channel is open.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vmbus_probe_internal.h"

static int probe_gpadl_get(struct probe_port *port, void __user *arg,
			   struct vmbus_probe_gpadl *req, struct probe_gpadl **slot)
{
	if (copy_from_user(req, arg, sizeof(*req)))
		return -EFAULT;
	if (req->slot >= VMBUS_PROBE_GPADLS || req->reserved)
		return -EINVAL;
	*slot = &port->gpadls[req->slot];
	return probe_usable(port);
}

/* Tells the user what is in the GPADL, and how large it is. */
static int probe_gpadl_put(void __user *arg, struct vmbus_probe_gpadl *req,
			   const struct probe_gpadl *slot)
{
	req->size = slot->size;
	req->handle = slot->gpadl.gpadl_handle;
	if (copy_to_user(u64_to_user_ptr(req->data), slot->buffer, slot->size) ||
	    copy_to_user(arg, req, sizeof(*req)))
		return -EFAULT;
	return 0;
}

static void probe_gpadl_forget(struct probe_gpadl *slot)
{
	free_pages_exact(slot->buffer, slot->size);
	memset(slot, 0, sizeof(*slot));
}

int probe_gpadl_make(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_gpadl req;
	struct probe_gpadl *slot;
	int ret;

	ret = probe_gpadl_get(port, arg, &req, &slot);
	if (ret)
		return ret;
	if (slot->buffer)
		return -EBUSY;
	if (!req.size || req.size > VMBUS_PROBE_MAX_GPADL || req.size % HV_HYP_PAGE_SIZE)
		return -EINVAL;

	slot->buffer = alloc_pages_exact(req.size, GFP_KERNEL | __GFP_ZERO);
	if (!slot->buffer)
		return -ENOMEM;
	slot->size = req.size;
	if (copy_from_user(slot->buffer, u64_to_user_ptr(req.data), req.size)) {
		probe_gpadl_forget(slot);
		return -EFAULT;
	}
	ret = vmbus_establish_gpadl(port->hdev->channel, slot->buffer, slot->size, &slot->gpadl);
	if (ret) {
		probe_gpadl_forget(slot);
		return ret;
	}
	return probe_gpadl_put(arg, &req, slot);
}

int probe_gpadl_read(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_gpadl req;
	struct probe_gpadl *slot;
	int ret;

	ret = probe_gpadl_get(port, arg, &req, &slot);
	if (ret)
		return ret;
	if (!slot->buffer)
		return -ENOENT;
	return probe_gpadl_put(arg, &req, slot);
}

int probe_gpadl_free(struct probe_port *port, void __user *arg)
{
	struct vmbus_probe_gpadl req;
	struct probe_gpadl *slot;
	int ret;

	ret = probe_gpadl_get(port, arg, &req, &slot);
	if (ret)
		return ret;
	if (!slot->buffer)
		return -ENOENT;
	ret = vmbus_teardown_gpadl(port->hdev->channel, &slot->gpadl);
	/* The host may have it still: rather lose the memory than share it. */
	if (ret)
		return ret;
	ret = probe_gpadl_put(arg, &req, slot);
	probe_gpadl_forget(slot);
	return ret;
}

void probe_gpadls_end(struct probe_port *port)
{
	u32 i;

	for (i = 0; i < VMBUS_PROBE_GPADLS; i++) {
		struct probe_gpadl *slot = &port->gpadls[i];

		if (slot->buffer && !vmbus_teardown_gpadl(port->hdev->channel, &slot->gpadl))
			probe_gpadl_forget(slot);
	}
}
