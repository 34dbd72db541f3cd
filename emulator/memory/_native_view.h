// SPDX-License-Identifier: MIT
/*
 * The PageView of emulator.memory._native as C sees it, for extensions that work on one without a call for each
 * access. All of them are built together, so that the layout below is private to this package.
 */
#ifndef EMULATOR_MEMORY_NATIVE_VIEW_H
#define EMULATOR_MEMORY_NATIVE_VIEW_H

#include <Python.h>

#include <string.h>

#define VIEW_PAGE_SIZE 4096

typedef struct {
    Py_buffer buffer;
    Py_ssize_t start; /* logical offset of the first byte */
} Segment;

typedef struct {
    PyObject_HEAD
    PyObject *views; /* tuple of memoryview, one per segment, for slices() */
    Segment *segments;
    Py_ssize_t count;
    Py_ssize_t length;
} PageView;

/* The segment that holds the logical offset, which must be below the length. */
static inline Segment *
view_find(const PageView *self, Py_ssize_t offset)
{
    Py_ssize_t low = 0, high = self->count - 1;

    while (low < high) {
        Py_ssize_t middle = low + (high - low + 1) / 2;

        if (self->segments[middle].start <= offset) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return &self->segments[low];
}

/* Bytes of the segment from the offset on, at most the wanted number. */
static inline Py_ssize_t
view_piece(const Segment *segment, Py_ssize_t offset, Py_ssize_t wanted)
{
    Py_ssize_t here = segment->start + segment->buffer.len - offset;

    return here < wanted ? here : wanted;
}

/* Copy bytes that lie within the view. */
static inline void
view_read(const PageView *self, Py_ssize_t offset, char *to, Py_ssize_t length)
{
    if (!length) {
        return;
    }
    for (Segment *segment = view_find(self, offset); length; segment++) {
        Py_ssize_t n = view_piece(segment, offset, length);

        memcpy(to, (char *)segment->buffer.buf + (offset - segment->start), (size_t)n);
        to += n;
        offset += n;
        length -= n;
    }
}

/* Copy bytes to where they lie within the view. They may come from the same guest memory: hence memmove. */
static inline void
view_write(PageView *self, Py_ssize_t offset, const char *from, Py_ssize_t length)
{
    if (!length) {
        return;
    }
    for (Segment *segment = view_find(self, offset); length; segment++) {
        Py_ssize_t n = view_piece(segment, offset, length);

        memmove((char *)segment->buffer.buf + (offset - segment->start), from, (size_t)n);
        from += n;
        offset += n;
        length -= n;
    }
}

#endif
