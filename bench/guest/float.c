/*
 * Pieces of floating-point work: SSE, x87, AVX2 with FMA. Compiled without
 * contraction, so that every result is exact to the bit on every processor.
 */
#include "work.h"

#include <immintrin.h>

struct body {
	double x[3], v[3], mass;
};

/* Five bodies that pull at each other, 1 million steps, in doubles. */
uint64_t nbody(double scale)
{
	static const struct body start[5] = {
		{ { 0, 0, 0 }, { 0, 0, 0 }, 39.5 },
		{ { 4.84, -1.16, -0.10 }, { 0.606, 2.81, -0.02 }, 0.0377 },
		{ { 8.34, 4.12, -0.40 }, { -1.01, 1.82, 0.008 }, 0.0113 },
		{ { 12.9, -15.1, -0.22 }, { 1.08, 0.868, -0.01 }, 0.0017 },
		{ { 15.4, -25.9, 0.18 }, { 0.979, 0.594, -0.035 }, 0.002 },
	};
	struct body b[5];
	uint64_t sum = 0;
	const double step = 0.001;
	for (int i = 0; i < 5; i++)
		b[i] = start[i];
	for (uint64_t n = scaled(scale, 1000000); n > 0; n--) {
		for (int i = 0; i < 5; i++) {
			for (int j = i + 1; j < 5; j++) {
				double d[3], square = 0;
				for (int k = 0; k < 3; k++) {
					d[k] = b[i].x[k] - b[j].x[k];
					square += d[k] * d[k];
				}
				double pull = step / (square * __builtin_sqrt(square));
				for (int k = 0; k < 3; k++) {
					b[i].v[k] -= d[k] * b[j].mass * pull;
					b[j].v[k] += d[k] * b[i].mass * pull;
				}
			}
		}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++)
				b[i].x[k] += step * b[i].v[k];
	}
	for (int i = 0; i < 5; i++)
		for (int k = 0; k < 3; k++)
			sum = mix(sum, bits(b[i].x[k]));
	return sum;
}

/* Floats, four at a time in SSE registers: the compiler's own vectors. Steps
 * of an oscillation, which never settles: each step shows in the checksum. */
__attribute__((noinline, optimize("tree-vectorize"), optimize("O3")))
static void step_floats(float *restrict to, const float *restrict from, size_t count, float by)
{
	for (size_t i = 0; i < count; i++)
		to[i] += from[i] * by + 0.125f;
}

uint64_t vector(double scale)
{
	enum { COUNT = 4096 };
	static float a[COUNT] __attribute__((aligned(64))), b[COUNT] __attribute__((aligned(64)));
	uint64_t sum = 0;
	for (int i = 0; i < COUNT; i++) {
		a[i] = (float)i / 64;
		b[i] = (float)(COUNT - i) / 128;
	}
	for (uint64_t n = scaled(scale, 100000); n > 0; n--) {
		step_floats(a, b, COUNT, 0.25f);
		step_floats(b, a, COUNT, -0.25f);
	}
	for (int i = 0; i < COUNT; i++)
		sum = mix(sum, bits(a[i] + (double)b[i]));
	return sum;
}

/* The sum of 1/i² on the x87: long double is its format. */
uint64_t x87(double scale)
{
	long double sum = 0;
	union {
		long double number;
		struct {
			uint64_t significand;
			uint16_t exponent;
		} parts;
	} result = { 0 };
	for (uint64_t i = scaled(scale, 10000000); i > 0; i--) {
		long double x = (long double)(int64_t)i;
		sum += 1 / (x * x);
	}
	result.number = sum;
	return mix(result.parts.significand, result.parts.exponent);
}

int has_avx2_fma(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Matrices of 256 × 256 floats multiplied 256 times, with AVX2 and FMA. */
enum { SIDE = 256 };

__attribute__((noinline, target("avx2,fma")))
static void multiply(float (*restrict c)[SIDE], float (*restrict a)[SIDE], float (*restrict b)[SIDE])
{
	for (int i = 0; i < SIDE; i++) {
		for (int j = 0; j < SIDE; j += 32) {
			__m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
			for (int k = 0; k < SIDE; k++) {
				__m256 x = _mm256_broadcast_ss(&a[i][k]);
				s0 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j]), s0);
				s1 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 8]), s1);
				s2 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 16]), s2);
				s3 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 24]), s3);
			}
			_mm256_store_ps(&c[i][j], s0);
			_mm256_store_ps(&c[i][j + 8], s1);
			_mm256_store_ps(&c[i][j + 16], s2);
			_mm256_store_ps(&c[i][j + 24], s3);
		}
	}
}

uint64_t matmul(double scale)
{
	static float a[SIDE][SIDE] __attribute__((aligned(64)));
	static float b[SIDE][SIDE] __attribute__((aligned(64)));
	static float c[SIDE][SIDE] __attribute__((aligned(64)));
	uint64_t state = 3, sum = 0;
	for (int i = 0; i < SIDE; i++) {
		for (int j = 0; j < SIDE; j++) {
			a[i][j] = (float)(next_random(&state) >> 40) / (1 << 24);
			b[i][j] = (float)(next_random(&state) >> 40) / (1 << 28);
		}
	}
	start_clock();
	for (uint64_t n = scaled(scale, 256); n > 0; n--) {
		multiply(c, a, b);
		a[n % SIDE][0] = c[0][n % SIDE];
	}
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++)
			sum = mix(sum, bits(c[i][j]));
	return sum;
}
