/* SPDX-License-Identifier: MIT */
/*
 * oldbus: a VMBus guest of the versions 0.13 and 1.1, which no kernel speaks any more.
 *
 *   run=oldbus version=N     13 or 65537
 *
 * All channels share event flag 0 of SINT 2 on VP 0 and event connection 2; bits of the interrupt page say whose an
 * event is. What is done here is what Linux did until 5.19: vmbus_connect(), vmbus_isr(), vmbus_set_event(). The channel
 * is the data channel of the probe (docs/probe.md), which sends an echo back as it is.
 */

#include "lib/hyperv.h"

#define VEC_BUS 0x61
#define EVENT_CONNECTION 2u
#define RING_PAGES 4u
#define RING_DATA ((RING_PAGES - 1) * PAGE_SIZE)
#define GPADL 0xe1e10u
#define ROUNDS 50u

enum {
    OFFER = 1,
    REQUEST_OFFERS = 3,
    ALL_OFFERS,
    OPEN,
    OPEN_RESULT,
    CLOSE,
    GPADL_HEADER,
    GPADL_CREATED = 10,
    GPADL_TEARDOWN,
    GPADL_TORNDOWN,
    CONTACT = 14,
    VERSION_RESPONSE,
    UNLOAD,
    UNLOAD_COMPLETE,
};

static u8 interrupt_page[PAGE_SIZE] PAGE_ALIGNED;
static u8 monitor_pages[2][PAGE_SIZE] PAGE_ALIGNED;
static u8 rings[2][RING_PAGES * PAGE_SIZE] PAGE_ALIGNED;
static u32 answer[60];

static void interrupt(u8 vector)
{
    (void)vector;
}

/* Post one message, as often as the host needs. */
static u32 post(const u32 *message, u32 size)
{
    u32 *input = (u32 *)my_pages()->input, status;

    do {
        input[0] = 1;
        input[1] = 0;
        input[2] = 1;
        input[3] = size;
        memcpy(input + 4, message, size);
        status = HV_STATUS(hypercall(HV_POST_MESSAGE, (uintptr_t)input, 0));
    } while (status == HV_INSUFFICIENT_BUFFERS);
    return status;
}

/* Take the next message of the host into `answer`; its type, or 0 if none comes. */
static u32 take(void)
{
    volatile struct hv_message *slot = my_slot(VMBUS_SINT);

    if (!wait_for(slot->type)) {
        return 0;
    }
    for (u32 i = 0; i < ARRAY_SIZE(answer); i++) {
        answer[i] = slot->word[i];
    }
    slot->type = 0;
    mfence();
    if (slot->flags & MSG_FLAG_PENDING) {
        wrmsr(MSR_EOM, 0);
    }
    return answer[0];
}

static bool take_bit(u8 *bits, u32 number)
{
    u32 mask = 1u << number % 32;

    return __atomic_fetch_and((u32 *)bits + number / 32, ~mask, __ATOMIC_SEQ_CST) & mask;
}

static u32 contact(u32 version)
{
    u32 message[10] = {CONTACT, 0, version, 0, (u32)(uintptr_t)interrupt_page, 0};

    message[6] = (u32)(uintptr_t)monitor_pages[0];
    message[8] = (u32)(uintptr_t)monitor_pages[1];
    check_eq(post(message, sizeof(message)), HV_SUCCESS, "the contact is posted");
    check_eq(take(), VERSION_RESPONSE, "and answered");
    check_eq(answer[3], version, "with the version");
    return answer[2] & 0xff;
}

/* The channel id of the probe's data channel, 0 if there is none. */
static u32 offers(void)
{
    u32 message[2] = {REQUEST_OFFERS, 0}, type, found = 0;

    post(message, sizeof(message));
    while ((type = take()) == OFFER) {
        const u32 *body = answer + 2;

        /* its offer data: magic, version 1, role 1 */
        if (body[13] == 0x42525056 && body[14] == (1 | 1 << 16)) {
            found = body[44];
        }
    }
    check_eq(type, ALL_OFFERS, "offers come to an end");
    check(found, "the probe's data channel is offered");
    return found;
}

static void open_channel(u32 channel)
{
    u32 gpadl[7 + 4 * RING_PAGES] = {GPADL_HEADER, 0, channel, GPADL, (8 + 16 * RING_PAGES) | 1 << 16};
    u32 open[37] = {OPEN, 0, channel, 1, GPADL, 0xabcd, RING_PAGES};

    gpadl[5] = sizeof(rings);
    for (u32 i = 0; i < 2 * RING_PAGES; i++) {
        gpadl[7 + 2 * i] = (u32)((uintptr_t)rings / PAGE_SIZE) + i;
    }
    post(gpadl, sizeof(gpadl));
    check(take() == GPADL_CREATED && !answer[4], "the rings are a GPADL");
    post(open, sizeof(open));
    check(take() == OPEN_RESULT && !answer[4], "the channel is open");
}

/* Write an echo request to the ring, and signal the host. */
static u64 ask(u32 channel, u32 number)
{
    volatile u32 *control = (volatile u32 *)rings[0];
    u8 *to = rings[0] + PAGE_SIZE + control[0];
    u32 packet[14] = {6 | 2 << 16, 6 | 1 << 16, number, 0, 0x31425250, 6, number};

    packet[13] = control[0];
    memcpy(to, packet, sizeof(packet)); /* as ROUNDS are, it does not come to the end of the ring */
    mfence();
    control[0] += sizeof(packet);
    mfence();
    __atomic_fetch_or((u32 *)(interrupt_page + PAGE_SIZE / 2) + channel / 32, 1u << channel % 32, __ATOMIC_SEQ_CST);
    return HV_STATUS(hypercall(HV_SIGNAL_EVENT | HV_FAST, EVENT_CONNECTION, 0));
}

/* Wait for the host's event, for its bit, and for the packet; how many of the three came in order. */
static u32 listen(u32 channel, u32 number)
{
    volatile u32 *flags = (volatile u32 *)(my_pages()->siefp + 256 * VMBUS_SINT);
    volatile u32 *control = (volatile u32 *)rings[1];
    const u32 *packet = (const u32 *)(rings[1] + PAGE_SIZE + control[1]);

    if (!wait_for(*flags)) {
        return 0;
    }
    if (!take_bit((u8 *)(uintptr_t)flags, 0) || *flags) {
        return 1;
    }
    if (!take_bit(interrupt_page, channel)) {
        return 2;
    }
    if (control[0] == control[1] || packet[0] % 65536 != 11 || packet[2] != number || packet[6] != number) {
        return 3;
    }
    control[1] = control[0];
    return 4;
}

static void leave(u32 channel, u32 version)
{
    u32 close[3] = {CLOSE, 0, channel}, teardown[4] = {GPADL_TEARDOWN, 0, channel, GPADL}, unload[2] = {UNLOAD, 0};

    post(close, sizeof(close));
    post(teardown, sizeof(teardown));
    check(take() == GPADL_TORNDOWN && answer[2] == GPADL, "the rings come back");
    post(unload, sizeof(unload));
    if (version > 13) {
        check_eq(take(), UNLOAD_COMPLETE, "the connection has ended");
    }
    check_eq(contact(version), 1, "and can be made again");
}

SUITE(oldbus)
{
    u32 version = (u32)option_number("version", 13), channel, passed = 0, lost = 0;

    irq_handler(VEC_BUS, interrupt);
    hv_start();
    hv_synic_start();
    wrmsr(SINT(VMBUS_SINT), VEC_BUS);
    check_eq(contact(version), 1, "the version is spoken");
    channel = offers();
    open_channel(channel);
    for (u32 number = 1; number <= ROUNDS; number++) {
        u32 got = 0;

        lost += ask(channel, number) != HV_SUCCESS;
        got = listen(channel, number);
        passed += got == 4;
        if (got != 4) {
            check_eq(got, 4, "echo %u: event, bit, packet", number);
            break;
        }
    }
    check_eq(lost, 0, "the shared event connection takes signals");
    check_eq(passed, ROUNDS, "each echo came, with an event and a bit");
    leave(channel, version);
}
