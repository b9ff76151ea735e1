/* Pieces of work on memory, and the C library's string functions. */
#include "work.h"

#include <string.h>

/* A pointer chase: each step waits for the one before, in 16 MiB of 4 KiB
 * pages, further than caches and TLBs reach. */
uint64_t chase(double scale)
{
	enum { LINE = 64, BYTES = 16 << 20, COUNT = BYTES / LINE };
	struct line {
		struct line *next;
		uint64_t number;
		char rest[LINE - 16];
	} *lines = pages(BYTES);
	uint32_t *order = pages(COUNT * sizeof *order);
	uint64_t state = 99, sum = 0;
	for (uint32_t i = 0; i < COUNT; i++)
		order[i] = i;
	for (uint32_t i = COUNT - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(next_random(&state) % (i + 1)), other = order[j];
		order[j] = order[i];
		order[i] = other;
	}
	for (uint32_t i = 0; i < COUNT; i++) {
		lines[order[i]].next = &lines[order[(i + 1) % COUNT]];
		lines[order[i]].number = i;
	}
	release(order, COUNT * sizeof *order);
	start_clock();
	struct line *at = lines;
	for (uint64_t n = scaled(scale, 20000000); n > 0; n--) {
		sum += at->number;
		at = at->next;
	}
	sum = mix(sum, at->number);
	release(lines, BYTES);
	return sum;
}

/* memcpy of 64 MiB, 40 times. */
uint64_t copy(double scale)
{
	enum { BYTES = 64 << 20 };
	void *(*volatile copy_with)(void *, const void *, size_t) = memcpy;
	uint64_t *from = pages(BYTES), *to = pages(BYTES), state = 5, sum = 0;
	for (size_t i = 0; i < BYTES / 8; i++)
		from[i] = next_random(&state);
	memset(to, 1, BYTES);
	start_clock();
	for (uint64_t n = scaled(scale, 40); n > 0; n--) {
		from[n] += n;
		copy_with(to, from, BYTES);
		sum = mix(sum, to[n] + to[BYTES / 8 - n]);
	}
	release(from, BYTES);
	release(to, BYTES);
	return sum;
}

/* strlen, strcpy, strcmp, strchr, memchr, strstr on short and long strings. */
uint64_t string(double scale)
{
	enum { COUNT = 64, LONGEST = 512 };
	static char texts[COUNT][LONGEST], buffer[LONGEST];
	/* Through pointers: the compiler knows these functions too well. */
	size_t (*volatile length)(const char *) = strlen;
	char *(*volatile copy_text)(char *, const char *) = strcpy;
	int (*volatile compare_texts)(const char *, const char *) = strcmp;
	char *(*volatile find)(const char *, int) = strchr;
	void *(*volatile find_byte)(const void *, int, size_t) = memchr;
	char *(*volatile find_text)(const char *, const char *) = strstr;
	uint64_t state = 17, sum = 0;
	for (int i = 0; i < COUNT; i++) {
		size_t size = i % 4 == 0 ? next_random(&state) % (LONGEST - 9) : next_random(&state) % 32;
		for (size_t j = 0; j < size; j++)
			texts[i][j] = (char)('a' + next_random(&state) % 24);
		memcpy(texts[i] + size, "yz", 3);
	}
	start_clock();
	for (uint64_t n = scaled(scale, 50000); n > 0; n--) {
		for (int i = 0; i < COUNT; i++) {
			const char *text = texts[i];
			size_t size = length(text);
			copy_text(buffer, text);
			buffer[n % (size + 1)] ^= 1;
			int order = compare_texts(text, buffer);
			const char *y = find(text, 'y');
			const char *last = find_byte(text, 'z', size);
			sum += size + (uint64_t)(order > 0) + (uint64_t)(y - text) + 3 * (uint64_t)(last - text);
			if (i % 8 == 0)
				sum ^= (uint64_t)(find_text(text, "yz") - text) << 8;
		}
	}
	return mix(sum, (uint64_t)buffer[0]);
}
