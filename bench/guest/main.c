/*
 * work: does fixed pieces of work and says how long each took.
 *
 *   work NAME[,NAME…]|all [SCALE] [CPUS]
 *
 * Prints `NAME SECONDS CHECKSUM` for each piece, or `NAME unsupported REASON`,
 * between `bench: begin` and `bench: end SECONDS`; the latter lets whoever
 * reads hold this machine's clock against another. SCALE is how much of the
 * full amount to do (1); CPUS how many processors to use (all).
 *
 * As process 1 of a guest it takes the same from the kernel's command line,
 * bench.only=NAME,… and bench.scale=SCALE, and powers off at the end. The
 * clock is CLOCK_MONOTONIC.
 */
#define _GNU_SOURCE
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const struct {
	const char *name;
	piece *run;
	int needs_avx2_fma;
} table[] = {
	{ "integer", integer, 0 },   { "sieve", sieve, 0 },       { "qsort", sort, 0 },
	{ "nbody", nbody, 0 },       { "vector", vector, 0 },     { "chase", chase, 0 },
	{ "memcpy", copy, 0 },       { "fib", calls, 0 },         { "indirect", indirect, 0 },
	{ "getppid", syscalls, 0 },  { "fault", faults, 0 },      { "fork", forks, 0 },
	{ "exec", execs, 0 },        { "pipe", pipes, 0 },        { "atomic", atomics, 0 },
	{ "x87", x87, 0 },           { "matmul", matmul, 1 },     { "string", string, 0 },
	{ "sha256", sha256, 0 },     { "bytecode", bytecode, 0 },
};
enum { PIECES = sizeof table / sizeof *table };

static double clock_started;

static double now(void)
{
	struct timespec time;
	if (clock_gettime(CLOCK_MONOTONIC, &time))
		die("clock_gettime");
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

void start_clock(void)
{
	clock_started = now();
}

uint64_t scaled(double scale, uint64_t amount)
{
	double result = (double)amount * scale;
	return result < 1 ? 1 : (uint64_t)result;
}

void *pages(size_t bytes)
{
	void *memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	/* EINVAL: a kernel without huge pages, which is what is asked for. */
	if (madvise(memory, bytes, MADV_NOHUGEPAGE) && errno != EINVAL)
		die("madvise");
	return memory;
}

void release(void *memory, size_t bytes)
{
	if (munmap(memory, bytes))
		die("munmap");
}

/* Waits until the console has sent everything, then ends; a guest powers off. */
__attribute__((noreturn)) static void end(int status)
{
	fflush(stdout);
	if (getpid() == 1) {
		tcdrain(STDOUT_FILENO);
		reboot(RB_POWER_OFF);
		perror("bench: power off");
		for (;;)
			pause();
	}
	exit(status);
}

void die(const char *what)
{
	printf("bench: failed: %s: %s\n", what, strerror(errno));
	end(1);
}

/* Whether `name` is in the list `names`, which commas divide. */
static int listed(const char *names, const char *name)
{
	size_t length = strlen(name);
	for (const char *at = names; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, name, length) && (at[length] == ',' || !at[length]))
			return 1;
	}
	return !strcmp(names, "all");
}

static void run(const char *names, double scale)
{
	int done = 0;
	printf("bench: begin\n");
	double begin = now();
	for (int i = 0; i < PIECES; i++) {
		if (!listed(names, table[i].name))
			continue;
		done++;
		if (table[i].needs_avx2_fma && !has_avx2_fma()) {
			printf("%s unsupported the processor has no AVX2 and FMA\n", table[i].name);
			continue;
		}
		start_clock();
		uint64_t checksum = table[i].run(scale);
		double seconds = now() - clock_started;
		printf("%s %.6f %016llx\n", table[i].name, seconds, (unsigned long long)checksum);
	}
	if (!done)
		printf("bench: failed: no such piece of work: %s\n", names);
	printf("bench: end %.6f\n", now() - begin);
	end(done ? 0 : 2);
}

/* What follows `key` on the kernel's command line, cut at the next space. */
static const char *option(char *line, const char *key)
{
	for (char *word = line; (word = strstr(word, key)); word++) {
		if (word != line && word[-1] != ' ' && word[-1] != 0)
			continue;
		word += strlen(key);
		word[strcspn(word, " \n")] = 0;
		return word;
	}
	return 0;
}

static void run_as_init(void)
{
	static char line[4096], copy_of_line[4096];
	mkdir("/proc", 0555);
	if (mount("proc", "/proc", "proc", 0, 0))
		die("mount /proc");
	int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, line, sizeof line - 1) < 0)
		die("/proc/cmdline");
	close(file);
	memcpy(copy_of_line, line, sizeof line);
	const char *names = option(line, "bench.only="), *scale = option(copy_of_line, "bench.scale=");
	run(names ? names : "all", scale ? strtod(scale, 0) : 1);
}

static void use_processors(int count)
{
	cpu_set_t all, some;
	if (sched_getaffinity(0, sizeof all, &all))
		die("sched_getaffinity");
	CPU_ZERO(&some);
	for (int cpu = 0; cpu < CPU_SETSIZE && count > 0; cpu++) {
		if (CPU_ISSET(cpu, &all)) {
			CPU_SET(cpu, &some);
			count--;
		}
	}
	if (sched_setaffinity(0, sizeof some, &some))
		die("sched_setaffinity");
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "exit"))
		return 42; /* the piece `exec` */
	setvbuf(stdout, 0, _IOLBF, 0);
	if (getpid() == 1)
		run_as_init();
	double scale = argc > 2 ? strtod(argv[2], 0) : 1;
	int cpus = argc > 3 ? atoi(argv[3]) : 0;
	if (argc < 2 || argc > 4 || !(scale > 0) || cpus < 0) {
		fprintf(stderr, "usage: work NAME[,NAME...]|all [SCALE] [CPUS]\npieces of work:");
		for (int i = 0; i < PIECES; i++)
			fprintf(stderr, " %s", table[i].name);
		fprintf(stderr, "\n");
		return 2;
	}
	if (cpus)
		use_processors(cpus);
	run(argv[1], scale);
}
