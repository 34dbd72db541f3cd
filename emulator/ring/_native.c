// SPDX-License-Identifier: MIT
/*
 * emulator.ring._native: the packets that nearly all traffic consists of, one or many in a call.
 *
 * A plain packet is in-band, a cancellation or a completion, without a header between descriptor and payload. It is
 * read and written here as emulator/ring/incoming.py and outgoing.py do with emulator/wire/packet.py, which remain
 * the reference: what is not a plain packet, or not a good one, is left to them, and they say what is wrong. So is
 * the order of accesses, which emulator/ring/control.py explains. The unit tests of the rings run on both.
 *
 * Reading ahead also takes packets with one range of guest pages, which is what storage drivers send.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../memory/_native_view.h"

/* The control page comes first; emulator/ring/control.py has all of it. */
#define IN_OFFSET 0
#define OUT_OFFSET 4
#define INTERRUPT_MASK_OFFSET 8
#define PENDING_SEND_SIZE_OFFSET 12
#define DATA_START VIEW_PAGE_SIZE
#define DESCRIPTOR_SIZE 16
#define TRAILER_SIZE 8
#define MAX_PACKET (UINT16_MAX * (Py_ssize_t)8 + TRAILER_SIZE) /* what length8 can express */

#define GUEST_PAGE_SIZE 4096 /* of the bus, whatever the guest's own pages are */
#define RANGES_SIZE 8        /* reserved, range_count */
#define RANGE_SIZE 8         /* length, offset */
/* Page numbers of one range: 1 MiB, several times what storage and network drivers send at once. */
#define MAX_PFNS 257

enum { IN_BAND = 6, GPA_DIRECT = 9, CANCEL = 10, COMPLETION = 11 };

typedef struct {
    uint16_t type;
    uint16_t data_offset8;
    uint16_t length8;
    uint16_t flags;
    uint64_t transaction_id;
} Descriptor;

typedef struct {
    uint32_t zero;
    uint32_t ring_offset;
} Trailer;

_Static_assert(sizeof(Descriptor) == DESCRIPTOR_SIZE, "layout of a descriptor");
_Static_assert(sizeof(Trailer) == TRAILER_SIZE, "layout of a trailer");

typedef struct {
    PyTypeObject *view_type;
} State;

/* The view of a ring, or NULL with an exception. */
static PageView *
ring_view(PyObject *module, PyObject *object)
{
    State *state = PyModule_GetState(module);
    PageView *view = (PageView *)object;

    if (!PyObject_TypeCheck(object, state->view_type)) {
        PyErr_SetString(PyExc_TypeError, "a ring in C needs a PageView of emulator.memory._native");
        return NULL;
    }
    if (view->length < DATA_START + VIEW_PAGE_SIZE) {
        PyErr_SetString(PyExc_ValueError, "the view has no data page");
        return NULL;
    }
    return view;
}

/* An offset into the data, which are `size` bytes; -1 with an exception. */
static Py_ssize_t
data_offset(PyObject *object, Py_ssize_t size)
{
    Py_ssize_t offset = PyLong_AsSsize_t(object);

    if (offset == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (offset < 0 || offset >= size || offset & 7) {
        PyErr_Format(PyExc_ValueError, "%zd is no offset in a ring of %zd bytes", offset, size);
        return -1;
    }
    return offset;
}

/* Copy from an offset that may be up to twice the ring size. */
static void
ring_read(const PageView *view, Py_ssize_t size, Py_ssize_t offset, char *to, Py_ssize_t length)
{
    Py_ssize_t first;

    if (offset >= size) {
        offset -= size;
    }
    first = size - offset < length ? size - offset : length;
    view_read(view, DATA_START + offset, to, first);
    view_read(view, DATA_START, to + first, length - first);
}

static Py_ssize_t
ring_write(PageView *view, Py_ssize_t size, Py_ssize_t offset, const char *from, Py_ssize_t length)
{
    Py_ssize_t first = size - offset < length ? size - offset : length;

    view_write(view, DATA_START + offset, from, first);
    view_write(view, DATA_START, from + first, length - first);
    return (offset + length) % size;
}

static int
is_plain(unsigned int type)
{
    return type == IN_BAND || type == COMPLETION || type == CANCEL;
}

static uint32_t *
control_word(const PageView *view, size_t offset)
{
    return (uint32_t *)((char *)view->segments[0].buffer.buf + offset);
}

/* Distance around the ring. */
static Py_ssize_t
ahead(Py_ssize_t size, Py_ssize_t from, Py_ssize_t to)
{
    return to >= from ? to - from : to - from + size;
}

/* Whether a plain packet begins at `out`; then its descriptor, a copy, and its length without the trailer. */
static int
plain_at(const PageView *view, Py_ssize_t size, Py_ssize_t out, Py_ssize_t available, Descriptor *descriptor,
         Py_ssize_t *length)
{
    if (available < DESCRIPTOR_SIZE + TRAILER_SIZE) {
        return 0;
    }
    /* A copy: the guest may change what is in the ring while it is looked at. */
    ring_read(view, size, out, (char *)descriptor, DESCRIPTOR_SIZE);
    /* The compiler is not to load a field from the ring once more, either. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *length = (Py_ssize_t)le16toh(descriptor->length8) * 8;
    return is_plain(le16toh(descriptor->type)) && le16toh(descriptor->flags) <= 1
        && le16toh(descriptor->data_offset8) * 8 == DESCRIPTOR_SIZE && *length >= DESCRIPTOR_SIZE
        && *length + TRAILER_SIZE <= available;
}

static PyObject *
plain_payload(const PageView *view, Py_ssize_t size, Py_ssize_t out, Py_ssize_t length)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, length - DESCRIPTOR_SIZE);

    if (payload) {
        ring_read(view, size, out + DESCRIPTOR_SIZE, PyBytes_AsString(payload), length - DESCRIPTOR_SIZE);
    }
    return payload;
}

/* The offsets of a reader, from the arguments 1 to 3; 0, or -1 with an exception. */
static int
reader_offsets(PyObject *const *args, Py_ssize_t size, Py_ssize_t *released, Py_ssize_t *out, Py_ssize_t *in)
{
    *released = data_offset(args[1], size);
    *out = *released < 0 ? -1 : data_offset(args[2], size);
    *in = *out < 0 ? -1 : data_offset(args[3], size);
    return *in < 0 ? -1 : 0;
}

/* Load `in` anew; -1 if the guest broke a rule with it. */
static Py_ssize_t
refreshed_in(const PageView *view, Py_ssize_t size, Py_ssize_t released, Py_ssize_t out)
{
    Py_ssize_t in = le32toh(__atomic_load_n(control_word(view, IN_OFFSET), __ATOMIC_ACQUIRE));

    if (in >= size || in & 7 || ahead(size, released, in) < ahead(size, released, out)) {
        return -1;
    }
    return in;
}

PyDoc_STRVAR(read_plain_doc,
"read_plain(view, released, out, in) -> (type, flags, transaction_id, payload, next_out, in) or None\n\n"
"Copy the packet at `out` out of a ring whose writer has published up to `in`. If that is nothing, `in` is loaded\n"
"anew. None if there is no packet, if it is not plain, or if a rule is broken.");

static PyObject *
read_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, released, out, in, length;
    PyObject *payload;
    Descriptor descriptor;
    PageView *view;

    if (nargs != 4) {
        PyErr_Format(PyExc_TypeError, "expected 4 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    if (!view) {
        return NULL;
    }
    size = view->length - DATA_START;
    if (reader_offsets(args, size, &released, &out, &in) < 0) {
        return NULL;
    }
    if (in == out) {
        in = refreshed_in(view, size, released, out);
        if (in < 0) {
            Py_RETURN_NONE;
        }
    }
    if (!plain_at(view, size, out, ahead(size, out, in), &descriptor, &length)) {
        Py_RETURN_NONE;
    }
    payload = plain_payload(view, size, out, length);
    if (!payload) {
        return NULL;
    }
    return Py_BuildValue("(iiKNnn)", (int)le16toh(descriptor.type), (int)le16toh(descriptor.flags),
                         (unsigned long long)le64toh(descriptor.transaction_id), payload,
                         (out + length + TRAILER_SIZE) % size, in);
}

/* A tuple of `count` fields, whose references it takes even if it fails; it does if one is NULL. */
static PyObject *
tuple_of(PyObject **fields, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    int failed = !tuple;

    for (Py_ssize_t i = 0; i < count; i++) {
        failed |= !fields[i];
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (failed) {
            Py_XDECREF(fields[i]);
        } else {
            PyTuple_SetItem(tuple, i, fields[i]); /* steals it */
        }
    }
    if (failed) {
        Py_XDECREF(tuple);
        return NULL;
    }
    return tuple;
}

/* (type, flags, transaction id, payload, next `out`, range), which is faster than Py_BuildValue; takes payload and range. */
static PyObject *
packet_tuple(Py_ssize_t size, Py_ssize_t out, const Descriptor *descriptor, Py_ssize_t length, PyObject *payload,
             PyObject *range)
{
    PyObject *fields[] = {
        PyLong_FromLong(le16toh(descriptor->type)),
        PyLong_FromLong(le16toh(descriptor->flags)),
        PyLong_FromUnsignedLongLong(le64toh(descriptor->transaction_id)),
        payload,
        PyLong_FromSsize_t((out + length + TRAILER_SIZE) % size),
        range,
    };

    return tuple_of(fields, sizeof fields / sizeof fields[0]);
}

/* What a GPA-direct packet begins with that has one range. */
typedef struct {
    uint32_t reserved;
    uint32_t count;
    uint32_t length;
    uint32_t offset;
    uint64_t pfns[MAX_PFNS];
} OneRange;

_Static_assert(offsetof(OneRange, pfns) == RANGES_SIZE + RANGE_SIZE, "layout of a range");

/*
 * The packet at `out`, whose descriptor plain_at has copied and refused, as a tuple if it is a GPA-direct one with one
 * range and keeps all rules; NULL, without an exception, if it is anything else.
 */
static PyObject *
ranged_tuple(const PageView *view, Py_ssize_t size, Py_ssize_t out, Py_ssize_t available, const Descriptor *descriptor,
             Py_ssize_t *length)
{
    Py_ssize_t start = (Py_ssize_t)le16toh(descriptor->data_offset8) * 8;
    Py_ssize_t header = start - DESCRIPTOR_SIZE;
    uint32_t span, offset, pages;
    PyObject *pfns, *payload;
    OneRange range;

    *length = (Py_ssize_t)le16toh(descriptor->length8) * 8;
    if (available < DESCRIPTOR_SIZE + TRAILER_SIZE || le16toh(descriptor->type) != GPA_DIRECT
        || le16toh(descriptor->flags) > 1 || start > *length || *length + TRAILER_SIZE > available
        || header < RANGES_SIZE + RANGE_SIZE + 8) {
        return NULL;
    }
    if (header > (Py_ssize_t)sizeof range) {
        /* Linux storvsc sends its array whole, with the first entries in use. */
        header = sizeof range;
    }
    ring_read(view, size, out + DESCRIPTOR_SIZE, (char *)&range, header);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    span = le32toh(range.length);
    offset = le32toh(range.offset);
    if (le32toh(range.count) != 1 || !span || offset >= GUEST_PAGE_SIZE || span > (MAX_PFNS - 1) * GUEST_PAGE_SIZE) {
        return NULL;
    }
    pages = (offset + span + GUEST_PAGE_SIZE - 1) / GUEST_PAGE_SIZE;
    if ((Py_ssize_t)pages * 8 > header - RANGES_SIZE - RANGE_SIZE) {
        return NULL;
    }
    pfns = PyTuple_New(pages);
    for (uint32_t i = 0; pfns && i < pages; i++) {
        PyObject *pfn = PyLong_FromUnsignedLongLong(le64toh(range.pfns[i]));

        if (!pfn) {
            Py_CLEAR(pfns);
            break;
        }
        PyTuple_SetItem(pfns, i, pfn); /* steals it */
    }
    payload = pfns ? PyBytes_FromStringAndSize(NULL, *length - start) : NULL;
    if (!payload) {
        Py_XDECREF(pfns);
        return NULL;
    }
    ring_read(view, size, out + start, PyBytes_AsString(payload), *length - start);
    return packet_tuple(size, out, descriptor, *length, payload,
                        tuple_of((PyObject *[]){PyLong_FromUnsignedLong(span), PyLong_FromUnsignedLong(offset), pfns}, 3));
}

PyDoc_STRVAR(read_ahead_doc,
"read_ahead(view, released, out, in, limit)\n"
"    -> ([(type, flags, transaction_id, payload, next_out, range), ...], in) or None\n\n"
"Copy up to `limit` packets from `out` on: plain ones, whose range is None, and GPA-direct ones with one range, which is\n"
"(length, offset, pfns). If nothing is published, `in` is loaded anew. None if there is no packet. The list ends before\n"
"a packet of another kind, or one that breaks a rule, and is empty if that is the first.");

static PyObject *
read_ahead(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, released, out, in, limit, length;
    Descriptor descriptor;
    PyObject *list;
    PageView *view;

    if (nargs != 5) {
        PyErr_Format(PyExc_TypeError, "expected 5 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    if (!view) {
        return NULL;
    }
    size = view->length - DATA_START;
    if (reader_offsets(args, size, &released, &out, &in) < 0) {
        return NULL;
    }
    limit = PyLong_AsSsize_t(args[4]);
    if (limit == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (in == out) {
        Py_ssize_t fresh = refreshed_in(view, size, released, out);

        if (fresh == out) {
            Py_RETURN_NONE;
        }
        if (fresh >= 0) {
            in = fresh;
        }
    }
    list = PyList_New(0);
    while (list && limit-- > 0) {
        Py_ssize_t available = ahead(size, out, in);
        PyObject *tuple;

        if (plain_at(view, size, out, available, &descriptor, &length)) {
            PyObject *payload = plain_payload(view, size, out, length);

            Py_INCREF(Py_None);
            tuple = packet_tuple(size, out, &descriptor, length, payload, Py_None);
        } else {
            tuple = ranged_tuple(view, size, out, available, &descriptor, &length);
            if (!tuple && !PyErr_Occurred()) {
                break;
            }
        }
        if (!tuple || PyList_Append(list, tuple) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(tuple);
        out = (out + length + TRAILER_SIZE) % size;
    }
    return list ? Py_BuildValue("(Nn)", list, in) : NULL;
}

/* Write a plain packet at `in`, where there is room; the offset after it. */
static Py_ssize_t
put_plain(PageView *view, Py_ssize_t size, Py_ssize_t in, unsigned int type, unsigned int flags,
          uint64_t transaction_id, const char *payload, Py_ssize_t length)
{
    static const char zeros[8];
    Py_ssize_t padding = -length & 7, position;
    Descriptor descriptor = {
        .type = htole16((uint16_t)type),
        .data_offset8 = htole16(DESCRIPTOR_SIZE / 8),
        .length8 = htole16((uint16_t)((DESCRIPTOR_SIZE + length + padding) / 8)),
        .flags = htole16((uint16_t)flags),
        .transaction_id = htole64(transaction_id),
    };
    Trailer trailer = {.zero = 0, .ring_offset = htole32((uint32_t)in)};

    position = ring_write(view, size, in, (const char *)&descriptor, DESCRIPTOR_SIZE);
    position = ring_write(view, size, position, payload, length);
    position = ring_write(view, size, position, zeros, padding);
    return ring_write(view, size, position, (const char *)&trailer, TRAILER_SIZE);
}

PyDoc_STRVAR(write_plain_doc,
"write_plain(view, in, type, flags, transaction_id, payload) -> next_in\n\n"
"Write a plain packet and its trailer at `in`. The caller has seen that there is room.");

static PyObject *
write_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    unsigned long long transaction_id;
    Py_ssize_t size, in, length8;
    unsigned long type, flags;
    Py_buffer payload;
    PageView *view;

    if (nargs != 6) {
        PyErr_Format(PyExc_TypeError, "expected 6 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    if (!view) {
        return NULL;
    }
    size = view->length - DATA_START;
    in = data_offset(args[1], size);
    if (in < 0) {
        return NULL;
    }
    type = PyLong_AsUnsignedLong(args[2]);
    flags = PyLong_AsUnsignedLong(args[3]);
    transaction_id = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (!is_plain((unsigned int)type) || flags > 1) {
        PyErr_Format(PyExc_ValueError, "a plain packet of type %lu with flags %lu", type, flags);
        return NULL;
    }
    if (PyObject_GetBuffer(args[5], &payload, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    length8 = (DESCRIPTOR_SIZE + payload.len + 7) / 8;
    if (length8 > UINT16_MAX || length8 * 8 + TRAILER_SIZE >= size) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of payload on a ring of %zd bytes", payload.len, size);
        PyBuffer_Release(&payload);
        return NULL;
    }
    in = put_plain(view, size, in, (unsigned int)type, (unsigned int)flags, transaction_id, payload.buf, payload.len);
    PyBuffer_Release(&payload);
    return PyLong_FromSsize_t(in);
}

PyDoc_STRVAR(write_completions_doc,
"write_completions(view, in, room, queue) -> (count, next_in)\n\n"
"Write completions from the front of `queue` at `in`, as far as they fit `room` bytes, which the caller has seen to be\n"
"free. A completion is a tuple that begins with transaction id and payload; any other item ends it.");

static PyObject *
write_completions(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, in, room, count = 0;
    PyObject *items, *item;
    PageView *view;

    if (nargs != 4) {
        PyErr_Format(PyExc_TypeError, "expected 4 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    if (!view) {
        return NULL;
    }
    size = view->length - DATA_START;
    in = data_offset(args[1], size);
    room = in < 0 ? -1 : PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (room >= size) {
        PyErr_Format(PyExc_ValueError, "%zd bytes cannot be free in a ring of %zd bytes", room, size);
        return NULL;
    }
    items = PyObject_GetIter(args[3]);
    if (!items) {
        return NULL;
    }
    while ((item = PyIter_Next(items))) {
        unsigned long long transaction_id;
        Py_ssize_t length, taken;
        char *payload;

        if (!PyTuple_Check(item) || PyTuple_Size(item) < 2) {
            Py_DECREF(item);
            break;
        }
        transaction_id = PyLong_AsUnsignedLongLong(PyTuple_GetItem(item, 0));
        if (PyErr_Occurred() || PyBytes_AsStringAndSize(PyTuple_GetItem(item, 1), &payload, &length) < 0) {
            Py_DECREF(item);
            break;
        }
        taken = DESCRIPTOR_SIZE + ((length + 7) & ~(Py_ssize_t)7) + TRAILER_SIZE;
        if (taken > room || taken > MAX_PACKET) {
            Py_DECREF(item);
            break;
        }
        in = put_plain(view, size, in, COMPLETION, 0, transaction_id, payload, length);
        Py_DECREF(item);
        room -= taken;
        count++;
    }
    Py_DECREF(items);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return Py_BuildValue("(nn)", count, in);
}

PyDoc_STRVAR(drain_doc,
"drain(up, released, out, in, down, down_in, room, limit) -> (count, payload_bytes, next_out, in, next_down_in)\n\n"
"Read up to `limit` plain in-band packets from the ring `up` as read_ahead does, look at none, and write an empty\n"
"completion at `down_in` of the ring `down` for each that asks for one, as far as they fit its `room` bytes. It ends\n"
"before a packet that is none of these, and before one whose completion does not fit.");

static PyObject *
drain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, down_size, released, out, in, down_in, room, limit, length, count = 0, bytes = 0;
    Descriptor descriptor;
    PageView *up, *down;

    if (nargs != 8) {
        PyErr_Format(PyExc_TypeError, "expected 8 arguments, got %zd", nargs);
        return NULL;
    }
    up = ring_view(module, args[0]);
    down = up ? ring_view(module, args[4]) : NULL;
    if (!down) {
        return NULL;
    }
    size = up->length - DATA_START;
    down_size = down->length - DATA_START;
    down_in = reader_offsets(args, size, &released, &out, &in) < 0 ? -1 : data_offset(args[5], down_size);
    if (down_in < 0) {
        return NULL;
    }
    room = PyLong_AsSsize_t(args[6]);
    limit = PyErr_Occurred() ? -1 : PyLong_AsSsize_t(args[7]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (room >= down_size) {
        PyErr_Format(PyExc_ValueError, "%zd bytes cannot be free in a ring of %zd bytes", room, down_size);
        return NULL;
    }
    if (in == out) {
        Py_ssize_t fresh = refreshed_in(up, size, released, out);

        in = fresh < 0 ? in : fresh;
    }
    for (; count < limit && plain_at(up, size, out, ahead(size, out, in), &descriptor, &length); count++) {
        int asks = le16toh(descriptor.flags) & 1;

        if (le16toh(descriptor.type) != IN_BAND || (asks && room < DESCRIPTOR_SIZE + TRAILER_SIZE)) {
            break;
        }
        if (asks) {
            down_in = put_plain(down, down_size, down_in, COMPLETION, 0, le64toh(descriptor.transaction_id), "", 0);
            room -= DESCRIPTOR_SIZE + TRAILER_SIZE;
        }
        bytes += length - DESCRIPTOR_SIZE;
        out = (out + length + TRAILER_SIZE) % size;
    }
    return Py_BuildValue("(nnnnn)", count, bytes, out, in, down_in);
}

PyDoc_STRVAR(publish_doc,
"publish(view, in) -> out or -1\n\n"
"Store `in`, fence, and load what tells whether the reader must be signalled: -1 if it masks, else `out`, unchecked.");

static PyObject *
publish(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    PageView *view;
    Py_ssize_t in;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    in = view ? data_offset(args[1], view->length - DATA_START) : -1;
    if (in < 0) {
        return NULL;
    }
    __atomic_store_n(control_word(view, IN_OFFSET), htole32((uint32_t)in), __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(control_word(view, INTERRUPT_MASK_OFFSET), __ATOMIC_ACQUIRE)) {
        return PyLong_FromLong(-1);
    }
    return PyLong_FromUnsignedLong(le32toh(__atomic_load_n(control_word(view, OUT_OFFSET), __ATOMIC_ACQUIRE)));
}

PyDoc_STRVAR(release_doc,
"release(view, out) -> pending_send_size\n\n"
"Store `out`, fence, and load what tells whether the writer waits for room.");

static PyObject *
release(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    PageView *view;
    Py_ssize_t out;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", nargs);
        return NULL;
    }
    view = ring_view(module, args[0]);
    out = view ? data_offset(args[1], view->length - DATA_START) : -1;
    if (out < 0) {
        return NULL;
    }
    __atomic_store_n(control_word(view, OUT_OFFSET), htole32((uint32_t)out), __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return PyLong_FromUnsignedLong(
        le32toh(__atomic_load_n(control_word(view, PENDING_SEND_SIZE_OFFSET), __ATOMIC_ACQUIRE)));
}

PyDoc_STRVAR(unmask_doc,
"unmask(view) -> in\n\n"
"Clear the interrupt mask, fence, and load `in`, unchecked.");

static PyObject *
unmask(PyObject *module, PyObject *object)
{
    PageView *view = ring_view(module, object);

    if (!view) {
        return NULL;
    }
    __atomic_store_n(control_word(view, INTERRUPT_MASK_OFFSET), 0, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return PyLong_FromUnsignedLong(le32toh(__atomic_load_n(control_word(view, IN_OFFSET), __ATOMIC_ACQUIRE)));
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef native_methods[] = {
    {"read_plain", FAST(read_plain), METH_FASTCALL, read_plain_doc},
    {"read_ahead", FAST(read_ahead), METH_FASTCALL, read_ahead_doc},
    {"write_plain", FAST(write_plain), METH_FASTCALL, write_plain_doc},
    {"write_completions", FAST(write_completions), METH_FASTCALL, write_completions_doc},
    {"drain", FAST(drain), METH_FASTCALL, drain_doc},
    {"publish", FAST(publish), METH_FASTCALL, publish_doc},
    {"release", FAST(release), METH_FASTCALL, release_doc},
    {"unmask", unmask, METH_O, unmask_doc},
    {NULL, NULL, 0, NULL},
};

static int
native_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *memory = PyImport_ImportModule("emulator.memory._native");

    if (!memory) {
        return -1;
    }
    state->view_type = (PyTypeObject *)PyObject_GetAttrString(memory, "PageView");
    Py_DECREF(memory);
    return state->view_type ? 0 : -1;
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);

    Py_VISIT(state->view_type);
    return 0;
}

static int
native_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);

    Py_CLEAR(state->view_type);
    return 0;
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "emulator.ring._native",
    .m_doc = "Plain packets, read from and written to a ring, one or many in a call.",
    .m_size = sizeof(State),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
