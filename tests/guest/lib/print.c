/* SPDX-License-Identifier: MIT */
/* Output of whole lines on QEMU's debug console, and the checks. */

#include "guest.h"

#define DEBUGCON 0xe9   /* -debugcon */
#define DEBUG_EXIT 0xf4 /* -device isa-debug-exit,iobase=0xf4; QEMU ends with 2 * value + 1 */
#define EXIT_PASSED 16
#define EXIT_FAILED 17
#define EXIT_BAILED 18

static struct spinlock output;
u32 checks;
u32 checks_failed;

static size_t put_number(char *to, u64 value, u32 base, int width, char fill)
{
    char digits[20];
    int n = 0;
    size_t length = 0;

    do {
        u32 digit = 0;

        /* By hand: the 32-bit build has no 64-bit division. */
        if (base == 16) {
            digit = value & 15;
            value >>= 4;
        } else {
            u64 quotient = 0;

            for (int bit = 63; bit >= 0; bit--) {
                digit = digit << 1 | (value >> bit & 1);
                if (digit >= 10) {
                    digit -= 10;
                    quotient |= 1ull << bit;
                }
            }
            value = quotient;
        }
        digits[n++] = "0123456789abcdef"[digit];
    } while (value);
    while (width-- > n) {
        to[length++] = fill;
    }
    while (n) {
        to[length++] = digits[--n];
    }
    return length;
}

/* %s %c %d %u %x, with l or ll, a width and a leading 0; %% */
void vformat(char *buffer, size_t size, const char *format, va_list args)
{
    size_t at = 0;

    for (; *format && at + 24 < size; format++) {
        int width = 0, longs = 0;
        char fill = ' ';

        if (*format != '%') {
            buffer[at++] = *format;
            continue;
        }
        format++;
        if (*format == '0') {
            fill = '0';
        }
        while (*format >= '0' && *format <= '9') {
            width = width * 10 + (*format++ - '0');
        }
        if (width > 20) {
            width = 20;
        }
        while (*format == 'l' || *format == 'z') {
            longs += *format == 'l' ? 1 : sizeof(size_t) / sizeof(int) - 1;
            format++;
        }
        switch (*format) {
        case '%':
            buffer[at++] = '%';
            break;
        case 'c':
            buffer[at++] = (char)va_arg(args, int);
            break;
        case 's':
            for (const char *s = va_arg(args, const char *); *s && at + 24 < size; s++) {
                buffer[at++] = *s;
            }
            break;
        case 'd': {
            int value = va_arg(args, int);

            if (value < 0) {
                buffer[at++] = '-';
                value = -value;
            }
            at += put_number(buffer + at, (u32)value, 10, width, fill);
            break;
        }
        default: {
            u64 value = longs >= 2 ? va_arg(args, unsigned long long)
                        : longs ? va_arg(args, unsigned long)
                                : va_arg(args, unsigned int);

            at += put_number(buffer + at, value, *format == 'x' ? 16 : 10, width, fill);
        }
        }
    }
    buffer[at] = 0;
}

static void put(const char *line)
{
    spin_lock(&output);
    while (*line) {
        outb(DEBUGCON, (u8)*line++);
    }
    outb(DEBUGCON, '\n');
    spin_unlock(&output);
}

void print(const char *format, ...)
{
    char line[256];
    va_list args;

    va_start(args, format);
    vformat(line, sizeof(line), format, args);
    va_end(args);
    put(line);
}

void note(const char *format, ...)
{
    char line[256] = "# ";
    va_list args;

    va_start(args, format);
    vformat(line + 2, sizeof(line) - 2, format, args);
    va_end(args);
    put(line);
}

extern const char *suite_name;

static bool report(bool passed, const char *name, va_list args, const char *rest)
{
    char text[200];
    u32 number = __atomic_add_fetch(&checks, 1, __ATOMIC_SEQ_CST);

    vformat(text, sizeof(text), name, args);
    if (!passed) {
        __atomic_add_fetch(&checks_failed, 1, __ATOMIC_SEQ_CST);
    }
    print("%sok %u - %s: %s%s", passed ? "" : "not ", number, suite_name, text, passed ? "" : rest);
    return passed;
}

bool check(bool passed, const char *name, ...)
{
    va_list args;

    va_start(args, name);
    report(passed, name, args, "");
    va_end(args);
    return passed;
}

bool check_eq(u64 got, u64 expected, const char *name, ...)
{
    char rest[80];
    va_list args;
    char *at = rest;

    memcpy(at, ": got 0x", 8);
    at += 8;
    at += put_number(at, got, 16, 0, ' ');
    memcpy(at, ", expected 0x", 13);
    at += 13;
    at += put_number(at, expected, 16, 0, ' ');
    *at = 0;
    va_start(args, name);
    report(got == expected, name, args, rest);
    va_end(args);
    return got == expected;
}

void skip(const char *reason, const char *name)
{
    u32 number = __atomic_add_fetch(&checks, 1, __ATOMIC_SEQ_CST);

    print("ok %u - %s: %s # SKIP %s", number, suite_name, name, reason);
}

static void __attribute__((noreturn)) leave(u32 code)
{
    irq_disable();
    for (;;) {
        outl(DEBUG_EXIT, code);
    }
}

void bail_out(const char *format, ...)
{
    char line[256] = "Bail out! ";
    va_list args;

    output.held = 0; /* who holds it may be the one that has faulted */
    va_start(args, format);
    vformat(line + 10, sizeof(line) - 10, format, args);
    va_end(args);
    put(line);
    leave(EXIT_BAILED);
}

void finish(void)
{
    print("1..%u", checks);
    leave(checks_failed ? EXIT_FAILED : EXIT_PASSED);
}

void *memset(void *to, int c, size_t n)
{
    for (u8 *p = to; n; n--) {
        *p++ = (u8)c;
    }
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    const u8 *q = from;

    for (u8 *p = to; n; n--) {
        *p++ = *q++;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *p = a, *q = b;

    for (; n; n--, p++, q++) {
        if (*p != *q) {
            return *p - *q;
        }
    }
    return 0;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return (u8)*a - (u8)*b;
}

size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n]) {
        n++;
    }
    return n;
}
