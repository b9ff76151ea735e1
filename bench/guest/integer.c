/* Pieces of integer work, calls and branches. */
#include "work.h"

#include <stdlib.h>
#include <string.h>

/* Multiply, shift, and a branch nothing predicts well. */
uint64_t integer(double scale)
{
	uint64_t x = 0x123456789abcdef, sum = 0;
	for (uint64_t i = scaled(scale, 200000000); i > 0; i--) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		uint64_t y = x ^ (x >> 29);
		if (y & 0x40)
			sum += y >> 7;
		else
			sum ^= y << 3;
	}
	return mix(sum, x);
}

/* Primes below 20 million, a byte for each number. */
uint64_t sieve(double scale)
{
	size_t limit = scaled(scale, 20000000) + 2;
	uint8_t *composite = pages(limit);
	uint64_t count = 0, sum = 0;
	for (size_t i = 2; i < limit; i++) {
		if (composite[i])
			continue;
		count++;
		sum += i;
		for (size_t j = i * i; j < limit; j += i)
			composite[j] = 1;
	}
	release(composite, limit);
	return mix(count, sum);
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
	return (a > b) - (a < b);
}

/* The C library's qsort over 2 million numbers. */
uint64_t sort(double scale)
{
	size_t count = scaled(scale, 2000000);
	uint32_t *numbers = pages(count * sizeof *numbers);
	uint64_t state = 42, sum = 0;
	for (size_t i = 0; i < count; i++)
		numbers[i] = (uint32_t)(next_random(&state) >> 32);
	start_clock();
	qsort(numbers, count, sizeof *numbers, compare);
	for (size_t i = 0; i < count; i += 1 + count / 4096)
		sum = mix(sum, numbers[i]);
	for (size_t i = 1; i < count; i++)
		sum += numbers[i - 1] > numbers[i];
	release(numbers, count * sizeof *numbers);
	return sum;
}

/* The compiler must not turn the recursion into a loop. */
__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls", "no-inline")))
static uint64_t fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* Recursive calls: Fibonacci of 38, of less by as much as the scale says. */
uint64_t calls(double scale)
{
	unsigned n = 38;
	for (; scale < 0.8 && n > 2; scale *= 1.618)
		n--;
	for (; scale > 1.3 && n < 60; scale /= 1.618)
		n++;
	return mix(n, fib(n));
}

static uint64_t add(uint64_t x) { return x + 0x9e3779b9; }
static uint64_t flip(uint64_t x) { return x ^ 0x5bd1e995cafe; }
static uint64_t turn(uint64_t x) { return x << 13 | x >> 51; }
static uint64_t triple(uint64_t x) { return x * 3; }

/* 100 million calls through a table of functions. */
uint64_t indirect(double scale)
{
	uint64_t (*volatile table[8])(uint64_t) = {
		add, flip, turn, triple, turn, add, triple, flip,
	};
	uint64_t x = 1;
	for (uint64_t i = scaled(scale, 100000000); i > 0; i--)
		x = table[i & 7](x);
	return x;
}

static const uint32_t round_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned by) { return x >> by | x << (32 - by); }

/* The compression function of SHA-256 (FIPS 180-4, 6.2.2). */
static void compress(uint32_t hash[8], const uint8_t block[64])
{
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++) {
		uint32_t word;
		memcpy(&word, block + 4 * i, 4);
		w[i] = __builtin_bswap32(word);
	}
	for (int i = 16; i < 64; i++) {
		uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + a + w[i - 7] + b;
	}
	memcpy(s, hash, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t e = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
		uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
		uint32_t t1 = s[7] + e + choice + round_constants[i] + w[i];
		uint32_t a = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
		uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
		memmove(s + 1, s, 7 * sizeof *s);
		s[4] += t1;
		s[0] = t1 + a + majority;
	}
	for (int i = 0; i < 8; i++)
		hash[i] += s[i];
}

/* SHA-256's compression function over 64 MiB. */
uint64_t sha256(double scale)
{
	uint32_t hash[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
			     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	uint8_t data[16384];
	uint64_t state = 7, sum = 0;
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (uint8_t)(next_random(&state) >> 56);
	start_clock();
	for (uint64_t i = scaled(scale, (64 << 20) / 64); i > 0; i--)
		compress(hash, data + i * 64 % sizeof data);
	for (int i = 0; i < 8; i++)
		sum = mix(sum, hash[i]);
	return sum;
}

/* The machine `bytecode` interprets: eight registers, four bytes an
 * instruction. */
enum operation { SET, MOVE, ADD, MULTIPLY, AND, SHIFT, JUMP, IF_ZERO, IF_LESS, HALT };
struct instruction {
	uint8_t operation, to, from;
	int8_t number;
};

/* The lengths of the Collatz sequences of r0 = 1, 2, … up to r1, summed in r7. */
static const struct instruction collatz[] = {
	/* 0 */ { SET, 0, 0, 1 },
	/* 1 */ { MOVE, 2, 0, 0 },      /* the number */
	/* 2 */ { IF_LESS, 2, 6, 14 },  /* r6 = 2: it is 1 */
	/* 3 */ { MOVE, 3, 2, 0 },
	/* 4 */ { AND, 3, 5, 0 },       /* r5 = 1 */
	/* 5 */ { IF_ZERO, 3, 0, 9 },
	/* 6 */ { MULTIPLY, 2, 4, 0 },  /* r4 = 3 */
	/* 7 */ { ADD, 2, 5, 0 },
	/* 8 */ { JUMP, 0, 0, 10 },
	/* 9 */ { SHIFT, 2, 0, 1 },
	/* 10 */ { ADD, 7, 5, 0 },
	/* 11 */ { JUMP, 0, 0, 2 },
	/* 12 */ { HALT, 0, 0, 0 },
	/* 13 */ { HALT, 0, 0, 0 },
	/* 14 */ { ADD, 0, 5, 0 },
	/* 15 */ { IF_LESS, 0, 1, 1 },
	/* 16 */ { HALT, 0, 0, 0 },
};

__attribute__((noinline)) static uint64_t interpret(const struct instruction *code, uint64_t r[8])
{
	uint64_t count = 0;
	for (const struct instruction *at = code;; count++) {
		struct instruction i = *at++;
		switch (i.operation) {
		case SET: r[i.to] = (uint64_t)i.number; break;
		case MOVE: r[i.to] = r[i.from]; break;
		case ADD: r[i.to] += r[i.from]; break;
		case MULTIPLY: r[i.to] *= r[i.from]; break;
		case AND: r[i.to] &= r[i.from]; break;
		case SHIFT: r[i.to] >>= i.number; break;
		case JUMP: at = code + i.number; break;
		case IF_ZERO: if (r[i.to] == 0) at = code + i.number; break;
		case IF_LESS: if (r[i.to] < r[i.from]) at = code + i.number; break;
		case HALT: return count;
		}
	}
}

/* An interpreter: a switch in a loop. */
uint64_t bytecode(double scale)
{
	uint64_t r[8] = { 0, scaled(scale, 200000), 0, 0, 3, 1, 2, 0 };
	uint64_t count = interpret(collatz, r);
	return mix(count, r[7]);
}
