// SPDX-License-Identifier: MIT
/*
 * emulator.ring._native: the packets that nearly all traffic consists of, in one call each.
 *
 * A plain packet is in-band, a cancellation or a completion, without a header between descriptor and payload. It is
 * read and written here as emulator/ring/incoming.py and outgoing.py do with emulator/wire/packet.py, which remain
 * the reference: what is not a plain packet, or not a good one, is left to them, and they say what is wrong. So is
 * the order of accesses, which emulator/ring/control.py explains. The unit tests of the rings run on both.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "../memory/_native_view.h"

/* The control page comes first; emulator/ring/control.py has all of it. */
#define IN_OFFSET 0
#define OUT_OFFSET 4
#define INTERRUPT_MASK_OFFSET 8
#define DATA_START VIEW_PAGE_SIZE
#define DESCRIPTOR_SIZE 16
#define TRAILER_SIZE 8

enum { IN_BAND = 6, CANCEL = 10, COMPLETION = 11 };

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

PyDoc_STRVAR(read_plain_doc,
"read_plain(view, released, out, in) -> (type, flags, transaction_id, payload, next_out, in) or None\n\n"
"Copy the packet at `out` out of a ring whose writer has published up to `in`. If that is nothing, `in` is loaded\n"
"anew. None if there is no packet, if it is not plain, or if a rule is broken.");

static PyObject *
read_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, released, out, in, available, length;
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
    released = data_offset(args[1], size);
    out = released < 0 ? -1 : data_offset(args[2], size);
    in = out < 0 ? -1 : data_offset(args[3], size);
    if (in < 0) {
        return NULL;
    }
    if (in == out) {
        in = le32toh(__atomic_load_n(control_word(view, IN_OFFSET), __ATOMIC_ACQUIRE));
        if (in >= size || in & 7 || ahead(size, released, in) < ahead(size, released, out)) {
            Py_RETURN_NONE;
        }
    }
    available = ahead(size, out, in);
    if (available < DESCRIPTOR_SIZE + TRAILER_SIZE) {
        Py_RETURN_NONE;
    }
    /* A copy: the guest may change what is in the ring while it is looked at. */
    ring_read(view, size, out, (char *)&descriptor, DESCRIPTOR_SIZE);
    /* The compiler is not to load a field from the ring once more, either. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    length = (Py_ssize_t)le16toh(descriptor.length8) * 8;
    if (!is_plain(le16toh(descriptor.type)) || le16toh(descriptor.flags) > 1
        || le16toh(descriptor.data_offset8) * 8 != DESCRIPTOR_SIZE || length < DESCRIPTOR_SIZE
        || length + TRAILER_SIZE > available) {
        Py_RETURN_NONE;
    }
    payload = PyBytes_FromStringAndSize(NULL, length - DESCRIPTOR_SIZE);
    if (!payload) {
        return NULL;
    }
    ring_read(view, size, out + DESCRIPTOR_SIZE, PyBytes_AsString(payload), length - DESCRIPTOR_SIZE);
    return Py_BuildValue("(iiKNnn)", (int)le16toh(descriptor.type), (int)le16toh(descriptor.flags),
                         (unsigned long long)le64toh(descriptor.transaction_id), payload,
                         (out + length + TRAILER_SIZE) % size, in);
}

PyDoc_STRVAR(write_plain_doc,
"write_plain(view, in, type, flags, transaction_id, payload) -> next_in\n\n"
"Write a plain packet and its trailer at `in`. The caller has seen that there is room.");

static PyObject *
write_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size, in, position, padding, length8;
    static const char zeros[8];
    unsigned long type, flags;
    Descriptor descriptor;
    Py_buffer payload;
    Trailer trailer;
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
    descriptor.transaction_id = htole64(PyLong_AsUnsignedLongLong(args[4]));
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
    padding = -payload.len & 7;
    length8 = (DESCRIPTOR_SIZE + payload.len + padding) / 8;
    if (length8 > UINT16_MAX || length8 * 8 + TRAILER_SIZE >= size) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of payload on a ring of %zd bytes", payload.len, size);
        PyBuffer_Release(&payload);
        return NULL;
    }
    descriptor.type = htole16((uint16_t)type);
    descriptor.data_offset8 = htole16(DESCRIPTOR_SIZE / 8);
    descriptor.length8 = htole16((uint16_t)length8);
    descriptor.flags = htole16((uint16_t)flags);
    trailer.zero = 0;
    trailer.ring_offset = htole32((uint32_t)in);

    position = ring_write(view, size, in, (const char *)&descriptor, DESCRIPTOR_SIZE);
    position = ring_write(view, size, position, payload.buf, payload.len);
    position = ring_write(view, size, position, zeros, padding);
    position = ring_write(view, size, position, (const char *)&trailer, TRAILER_SIZE);
    PyBuffer_Release(&payload);
    return PyLong_FromSsize_t(position);
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

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef native_methods[] = {
    {"read_plain", FAST(read_plain), METH_FASTCALL, read_plain_doc},
    {"write_plain", FAST(write_plain), METH_FASTCALL, write_plain_doc},
    {"publish", FAST(publish), METH_FASTCALL, publish_doc},
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
    .m_doc = "Plain packets, read from and written to a ring in one call each.",
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
