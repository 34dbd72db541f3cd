// SPDX-License-Identifier: MIT
/*
 * emulator.memory._native: the PageView that the backend runs on.
 *
 * A VMBus ring is shared with a guest that runs at the same time. Its control words must be read and written
 * whole, and a store must sometimes become visible before a later load is made. Python can promise neither, so
 * this file does both with the __atomic builtins of the compiler. It also copies to and from scattered pages,
 * because that is what every packet costs.
 *
 * The behaviour is that of emulator/memory/_pure.py, and the unit tests run on both. Only the limited API
 * of CPython 3.11 is used.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "_native_view.h"

static void
PageView_dealloc(PageView *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    for (Py_ssize_t i = 0; i < self->count; i++) {
        PyBuffer_Release(&self->segments[i].buffer);
    }
    PyMem_Free(self->segments);
    Py_XDECREF(self->views);
    release(self);
    Py_DECREF(type);
}

/* Take hold of one segment; count and length grow only when it is fully acquired. */
static int
add_segment(PageView *self, PyObject *object)
{
    Segment *segment = &self->segments[self->count];

    if (PyObject_GetBuffer(object, &segment->buffer, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (segment->buffer.itemsize != 1 || segment->buffer.len <= 0
        || segment->buffer.len % VIEW_PAGE_SIZE
        || (uintptr_t)segment->buffer.buf % sizeof(uint32_t)) {
        PyBuffer_Release(&segment->buffer);
        PyErr_SetString(PyExc_ValueError, "a segment must be whole pages of aligned bytes");
        return -1;
    }
    if (segment->buffer.len > PY_SSIZE_T_MAX - self->length) {
        PyBuffer_Release(&segment->buffer);
        PyErr_SetString(PyExc_ValueError, "the segments are too long together");
        return -1;
    }
    segment->start = self->length;
    self->length += segment->buffer.len;
    self->count++;
    return 0;
}

static PyObject *
make_view(PyTypeObject *type, PyObject *sequence)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *items = PySequence_Tuple(sequence);
    PageView *self;
    Py_ssize_t count;

    if (!items) {
        return NULL;
    }
    count = PyTuple_Size(items);
    self = (PageView *)alloc(type, 0); /* zeroed: dealloc is safe from here on */
    if (!self) {
        goto fail;
    }
    self->views = PyTuple_New(count);
    self->segments = PyMem_Calloc((size_t)count + 1, sizeof(Segment));
    if (!self->views || !self->segments) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *view = PyMemoryView_FromObject(PyTuple_GetItem(items, i));

        if (!view) {
            goto fail;
        }
        PyTuple_SetItem(self->views, i, view); /* steals view */
        if (add_segment(self, view) < 0) {
            goto fail;
        }
    }
    Py_DECREF(items);
    return (PyObject *)self;

fail:
    Py_DECREF(items);
    Py_XDECREF((PyObject *)self);
    return NULL;
}

static PyObject *
PageView_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *sequence;

    if (kwargs && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "PageView() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:PageView", &sequence)) {
        return NULL;
    }
    return make_view(type, sequence);
}

static Py_ssize_t
PageView_length(PageView *self)
{
    return self->length;
}

static int
check_span(PageView *self, Py_ssize_t offset, Py_ssize_t length)
{
    if (offset < 0 || length < 0 || offset > self->length || length > self->length - offset) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd are not within a view of %zd bytes",
                     length, offset, self->length);
        return -1;
    }
    return 0;
}

static int
two_sizes(PyObject *const *args, Py_ssize_t nargs, Py_ssize_t *first, Py_ssize_t *second)
{
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", nargs);
        return -1;
    }
    *first = PyLong_AsSsize_t(args[0]);
    if (*first == -1 && PyErr_Occurred()) {
        return -1;
    }
    *second = PyLong_AsSsize_t(args[1]);
    if (*second == -1 && PyErr_Occurred()) {
        return -1;
    }
    return 0;
}

static PyObject *
PageView_read(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, length;
    PyObject *result;

    if (two_sizes(args, nargs, &offset, &length) < 0 || check_span(self, offset, length) < 0) {
        return NULL;
    }
    result = PyBytes_FromStringAndSize(NULL, length);
    if (result) {
        view_read(self, offset, PyBytes_AsString(result), length);
    }
    return result;
}

static PyObject *
PageView_write(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, length;
    Py_buffer data;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", nargs);
        return NULL;
    }
    offset = PyLong_AsSsize_t(args[0]);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    length = data.len;
    if (check_span(self, offset, length) < 0) {
        PyBuffer_Release(&data);
        return NULL;
    }
    view_write(self, offset, data.buf, length);
    PyBuffer_Release(&data);
    Py_RETURN_NONE;
}

/* The address of an aligned word; segments are whole pages, so it never straddles two of them. */
static uint32_t *
word(PageView *self, Py_ssize_t offset)
{
    Segment *segment;

    if (check_span(self, offset, (Py_ssize_t)sizeof(uint32_t)) < 0) {
        return NULL;
    }
    if (offset % (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_Format(PyExc_ValueError, "the word at %zd is not aligned", offset);
        return NULL;
    }
    segment = view_find(self, offset);
    return (uint32_t *)((char *)segment->buffer.buf + (offset - segment->start));
}

static PyObject *
PageView_load_u32(PageView *self, PyObject *arg)
{
    Py_ssize_t offset = PyLong_AsSsize_t(arg);
    uint32_t *address;

    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    address = word(self, offset);
    if (!address) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(le32toh(__atomic_load_n(address, __ATOMIC_ACQUIRE)));
}

/* The address of the word that is to be written, and the value as it is in memory; NULL with an exception set. */
static uint32_t *
word_and_value(PageView *self, PyObject *const *args, Py_ssize_t nargs, uint32_t *value)
{
    Py_ssize_t offset, number;

    if (two_sizes(args, nargs, &offset, &number) < 0) {
        return NULL;
    }
    if (number < 0 || (uint64_t)number > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%zd does not fit 32 bits", number);
        return NULL;
    }
    *value = htole32((uint32_t)number);
    return word(self, offset);
}

static PyObject *
PageView_store_u32(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint32_t value, *address = word_and_value(self, args, nargs, &value);

    if (!address) {
        return NULL;
    }
    __atomic_store_n(address, value, __ATOMIC_RELEASE);
    Py_RETURN_NONE;
}

static PyObject *
PageView_swap_u32(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint32_t value, *address = word_and_value(self, args, nargs, &value);

    if (!address) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(le32toh(__atomic_exchange_n(address, value, __ATOMIC_SEQ_CST)));
}

static PyObject *
PageView_or_u32(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint32_t value, *address = word_and_value(self, args, nargs, &value);

    if (!address) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(le32toh(__atomic_fetch_or(address, value, __ATOMIC_SEQ_CST)));
}

static PyObject *
PageView_fence(PageView *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyObject *
collect_slices(PageView *self, Py_ssize_t offset, Py_ssize_t length)
{
    PyObject *result = PyList_New(0);

    if (!result || !length) {
        return result;
    }
    for (Segment *segment = view_find(self, offset); length; segment++) {
        Py_ssize_t n = view_piece(segment, offset, length);
        Py_ssize_t start = offset - segment->start;
        PyObject *view = PyTuple_GetItem(self->views, segment - self->segments);
        PyObject *part = PySequence_GetSlice(view, start, start + n);
        int failed = !part || PyList_Append(result, part) < 0;

        Py_XDECREF(part);
        if (failed) {
            Py_DECREF(result);
            return NULL;
        }
        offset += n;
        length -= n;
    }
    return result;
}

static PyObject *
PageView_slices(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, length;

    if (two_sizes(args, nargs, &offset, &length) < 0 || check_span(self, offset, length) < 0) {
        return NULL;
    }
    return collect_slices(self, offset, length);
}

static PyObject *
PageView_sub(PageView *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, length;
    PyObject *parts, *result;

    if (two_sizes(args, nargs, &offset, &length) < 0 || check_span(self, offset, length) < 0) {
        return NULL;
    }
    if (offset % VIEW_PAGE_SIZE || length % VIEW_PAGE_SIZE) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd are not whole pages", length, offset);
        return NULL;
    }
    parts = collect_slices(self, offset, length);
    if (!parts) {
        return NULL;
    }
    result = make_view(Py_TYPE((PyObject *)self), parts);
    Py_DECREF(parts);
    return result;
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef PageView_methods[] = {
    {"read", FAST(PageView_read), METH_FASTCALL, NULL},
    {"write", FAST(PageView_write), METH_FASTCALL, NULL},
    {"load_u32", (PyCFunction)PageView_load_u32, METH_O, NULL},
    {"store_u32", FAST(PageView_store_u32), METH_FASTCALL, NULL},
    {"swap_u32", FAST(PageView_swap_u32), METH_FASTCALL, NULL},
    {"or_u32", FAST(PageView_or_u32), METH_FASTCALL, NULL},
    {"fence", (PyCFunction)PageView_fence, METH_NOARGS, NULL},
    {"slices", FAST(PageView_slices), METH_FASTCALL, NULL},
    {"sub", FAST(PageView_sub), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot PageView_slots[] = {
    {Py_tp_doc, "A contiguous view of scattered pages; emulator.memory.PageView describes it."},
    {Py_tp_new, PageView_new},
    {Py_tp_dealloc, PageView_dealloc},
    {Py_tp_methods, PageView_methods},
    {Py_sq_length, PageView_length},
    {0, NULL},
};

static PyType_Spec PageView_spec = {
    .name = "emulator.memory._native.PageView",
    .basicsize = sizeof(PageView),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = PageView_slots,
};

static int
native_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &PageView_spec, NULL);
    int result;

    if (!type) {
        return -1;
    }
    result = PyModule_AddObjectRef(module, "PageView", type);
    Py_DECREF(type);
    return result;
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "emulator.memory._native",
    .m_doc = "Whole, ordered access to memory that is shared with a running guest.",
    .m_slots = native_slots,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
