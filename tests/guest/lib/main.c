/* SPDX-License-Identifier: MIT */
/* The command line, and the suites it names, run in its order. */

#include "guest.h"

#define PVPANIC 0x505 /* -device pvpanic,ioport=0x505 */
#define PVPANIC_PANICKED 1

/* What QEMU's pvh.bin fills in; Xen's public/arch-x86/hvm/start_info.h describes it. */
struct hvm_start_info {
    u32 magic, version, flags, module_count;
    u64 modules, command_line, rsdp;
};

extern u32 start_info;
extern const struct suite suites_start[], suites_end[];

const char *suite_name = "boot";
static char command_line[1024];
static u32 checkpoints;

/* The next word of the command line and its length, from *at on. */
static const char *next_word(const char **at, size_t *length)
{
    const char *word;

    while (**at == ' ') {
        (*at)++;
    }
    word = *at;
    while (**at && **at != ' ') {
        (*at)++;
    }
    *length = (size_t)(*at - word);
    return *length ? word : NULL;
}

static const char *value_of(const char *name, size_t *length)
{
    const char *at = command_line, *word;
    size_t n = strlen(name), have;

    while ((word = next_word(&at, &have))) {
        if (have > n && !memcmp(word, name, n) && word[n] == '=') {
            *length = have - n - 1;
            return word + n + 1;
        }
    }
    return NULL;
}

bool option(const char *wanted)
{
    const char *at = command_line, *word;
    size_t length;

    while ((word = next_word(&at, &length))) {
        if (length == strlen(wanted) && !memcmp(word, wanted, length)) {
            return true;
        }
    }
    return false;
}

u64 option_number(const char *name, u64 otherwise)
{
    size_t length;
    const char *value = value_of(name, &length);
    u64 number = 0;
    bool hex;

    if (!value) {
        return otherwise;
    }
    hex = length > 2 && value[0] == '0' && value[1] == 'x';
    for (size_t i = hex ? 2 : 0; i < length; i++) {
        char c = value[i];
        u32 digit = c <= '9' ? (u32)(c - '0') : (u32)((c | 0x20) - 'a' + 10);

        if (digit >= (hex ? 16u : 10u)) {
            bail_out("%s=: not a number", name);
        }
        number = number * (hex ? 16 : 10) + digit;
    }
    return number;
}

/* The n-th item of name=A,B,... */
static bool list_item(const char *name, u32 n, const char **item, size_t *item_length)
{
    size_t length = 0;
    const char *value = value_of(name, &length);

    for (size_t at = 0; value && at < length; n--) {
        size_t end = at;

        while (end < length && value[end] != ',') {
            end++;
        }
        if (n == 0) {
            *item = value + at;
            *item_length = end - at;
            return true;
        }
        at = end + 1;
    }
    return false;
}

bool option_lists(const char *name, const char *wanted)
{
    const char *item;
    size_t length;

    for (u32 i = 0; list_item(name, i, &item, &length); i++) {
        if (length == strlen(wanted) && !memcmp(item, wanted, length)) {
            return true;
        }
    }
    return false;
}

void checkpoint(const char *name)
{
    checkpoints++;
    if (option("checkpoints")) {
        print("checkpoint %u %s", checkpoints, name);
        outb(PVPANIC, PVPANIC_PANICKED);
        print("resumed %u", checkpoints);
    }
}

static void run_suite(const char *name, size_t length)
{
    for (const struct suite *s = suites_start; s < suites_end; s++) {
        if (strlen(s->name) == length && !memcmp(s->name, name, length)) {
            suite_name = s->name;
            s->run();
            irq_reset();
            return;
        }
    }
    bail_out("run= names a suite that is not there: %s", name);
}

void program(void)
{
    const struct hvm_start_info *info = (const void *)(uintptr_t)start_info;
    const char *name;
    size_t length;

    if (info->magic == 0x336ec578 && info->command_line) {
        const char *from = (const char *)(uintptr_t)info->command_line;

        for (size_t i = 0; i + 1 < sizeof(command_line) && from[i]; i++) {
            command_line[i] = from[i];
        }
    }
    /* The legacy interrupt controllers are of no use here. */
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    apic_x2 = option("x2apic");
    apic_enable();
    irq_enable();
    start_processors();

    for (u32 i = 0; list_item("run", i, &name, &length); i++) {
        run_suite(name, length);
    }
    suite_name = "end";
    finish();
}
