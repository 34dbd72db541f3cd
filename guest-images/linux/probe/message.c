// SPDX-License-Identifier: MIT
/* Arithmetic of the probe protocol, docs/probe.md sections 2 and 5. */
#include "message.h"

uint64_t mix(uint64_t seq)
{
	uint64_t x = seq + 0x9E3779B97F4A7C15;

	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
	x = (x ^ x >> 27) * 0x94D049BB133111EB;
	return x ^ x >> 31;
}

uint32_t crc32(uint32_t crc, const void *data, size_t size)
{
	static uint32_t table[256];
	const uint8_t *byte = data;

	if (!table[1]) {
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t entry = i;

			for (int bit = 0; bit < 8; bit++)
				entry = entry >> 1 ^ (entry & 1 ? 0xEDB88320 : 0);
			table[i] = entry;
		}
	}
	crc = ~crc;
	for (size_t i = 0; i < size; i++)
		crc = crc >> 8 ^ table[(crc ^ byte[i]) & 0xff];
	return ~crc;
}

void body_fill(uint8_t *body, size_t from, size_t size, uint64_t seq, enum salt salt)
{
	uint8_t value = body_byte(seq, from, salt);

	for (size_t i = 0; i < size; i++, value += BODY_STEP)
		body[i] = value;
}
