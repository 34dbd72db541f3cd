/* SPDX-License-Identifier: MIT */
/*
 * Messages of the probe protocol, docs/probe.md sections 2 to 5: layout,
 * numbers and the arithmetic of bodies and digests. No state.
 */
#ifndef PROBE_MESSAGE_H
#define PROBE_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

enum { PROTOCOL_VERSION = 2, LEDGER_LAYOUT = 1, MAX_BODY = 65536 };

/* Packet descriptor: the types in use, and its only flag. */
enum packet_type { PACKET_IN_BAND = 6, PACKET_GPA_DIRECT = 9, PACKET_COMPLETION = 11 };
enum { PACKET_COMPLETION_REQUESTED = 1 };

#define MESSAGE_MAGIC 0x31425250u /* "PRB1" */
enum { MESSAGE_WRITE_BACK = 1 };
enum { ANSWER_BIT = 0x8000 };
enum { ARG_GOOD = 0, ARG_BAD = 1 };

enum message_type {
	G_REQUEST = 1,
	G_ANSWER = 2,
	H_REQUEST = 3,
	H_ANSWER = 4,
	H_NOTIFY = 5,
	G_ECHO = 6,

	CTL_RUN = 16,
	CTL_STALL = 17,
	CTL_RESUME = 18,
	CTL_FINISH = 19,
	CTL_LEDGER = 20,
	CTL_MALFORM = 21,
	CTL_PING = 22,
	CTL_EXIT = 23,
	CTL_GPADL_MAKE = 24,
	CTL_GPADL_CHECK = 25,
	CTL_GPADL_FREE = 26,
	CTL_REOPEN = 27,
	CTL_READY = 32,
};

enum malform_kind {
	MALFORM_MAGIC = 1,
	MALFORM_PACKET_TYPE = 2,
	MALFORM_COMPLETION = 3,
	MALFORM_PFN = 4,
	MALFORM_WRITE_INDEX = 5,
	MALFORM_LENGTH = 6,
};

enum exit_action { EXIT_END = 0, EXIT_RELOAD = 1, EXIT_REBOOT = 2, EXIT_POWEROFF = 3 };

struct message {
	uint32_t magic;
	uint16_t type;
	uint16_t flags;
	uint64_t seq;
	uint32_t body_size;
	uint32_t body_crc;
	uint64_t arg;
};

_Static_assert(sizeof(struct message) == 32, "message header");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the protocol is little-endian");

struct run_body {
	uint32_t window;
	uint32_t gpa_every;
	uint32_t owe_every;
	uint32_t body_max;
	uint64_t total;
};

struct gpadl_body {
	uint32_t number;
	uint32_t pages;
};

struct stall_body {
	uint32_t requests;
	uint32_t answers;
};

struct stall_answer {
	uint32_t requests;
	uint32_t answers;
	uint32_t owed;
};

enum ledger_word {
	LEDGER_VERSION,
	LEDGER_SENT_IN_BAND,
	LEDGER_SENT_GPA,
	LEDGER_SENT_DIGEST,
	LEDGER_ANSWERED,
	LEDGER_ANSWERED_DIGEST,
	LEDGER_UNKNOWN_ANSWERS,
	LEDGER_WRONG_ANSWERS,
	LEDGER_WRONG_BUFFERS,
	LEDGER_MALFORMED,
	LEDGER_HOST_REQUESTS,
	LEDGER_HOST_NOTIFIES,
	LEDGER_HOST_TWICE,
	LEDGER_HOST_LOST,
	LEDGER_HOST_HIGHEST,
	LEDGER_HOST_DIGEST,
	LEDGER_HOST_ANSWERED,
	LEDGER_HOST_ANSWERED_DIGEST,
	LEDGER_HOST_WRONG_BODY,
	LEDGER_OWED,
	LEDGER_WORDS,
};

enum salt { SALT_GUEST = 0x11, SALT_HOST = 0x22 };
enum { WRITE_BACK_XOR = 0xa5 };

/* Digest of one sequence number; digests of several are added. */
uint64_t mix(uint64_t seq);

/* CRC-32 as in zlib: start with 0, feed the result back for the next piece. */
uint32_t crc32(uint32_t crc, const void *data, size_t size);

/* Byte @index of the body of transaction @seq; the next bytes add BODY_STEP each. */
enum { BODY_STEP = 13 };
static inline uint8_t body_byte(uint64_t seq, size_t index, enum salt salt)
{
	return (uint8_t)(seq * 167 + index * BODY_STEP + salt);
}

void body_fill(uint8_t *body, size_t from, size_t size, uint64_t seq, enum salt salt);

#endif
