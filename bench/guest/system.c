/* Pieces of work for the kernel: calls, faults, processes, threads. */
#include "work.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* 2 million calls of getppid, never cached by the library. */
uint64_t syscalls(double scale)
{
	uint64_t count = scaled(scale, 2000000), same = 0;
	long parent = syscall(SYS_getppid);
	for (uint64_t i = 0; i < count; i++)
		same += syscall(SYS_getppid) == parent;
	return mix(count, same);
}

/* 32 MiB of fresh memory touched page by page, 40 times. */
uint64_t faults(double scale)
{
	enum { BYTES = 32 << 20, PAGE = 4096 };
	uint64_t sum = 0;
	for (uint64_t n = scaled(scale, 40); n > 0; n--) {
		uint8_t *memory = pages(BYTES);
		for (size_t i = 0; i < BYTES; i += PAGE) {
			sum += memory[i + 8];
			memory[i] = (uint8_t)n;
		}
		for (size_t i = 0; i < BYTES; i += PAGE * 64)
			sum = mix(sum, memory[i]);
		release(memory, BYTES);
	}
	return sum;
}

static uint64_t wait_for(pid_t child)
{
	int status;
	if (child < 0)
		die("fork");
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	return WIFEXITED(status) ? (uint64_t)WEXITSTATUS(status) : 0x100u + (uint64_t)WTERMSIG(status);
}

/* 1000 processes that end at once; the parent has 4 MiB for them to share. */
uint64_t forks(double scale)
{
	enum { BYTES = 4 << 20 };
	uint8_t *memory = pages(BYTES);
	uint64_t sum = 0;
	for (size_t i = 0; i < BYTES; i += 4096)
		memory[i] = (uint8_t)(i >> 12);
	start_clock();
	for (uint64_t n = scaled(scale, 1000); n > 0; n--) {
		pid_t child = fork();
		if (child == 0) {
			memory[n % BYTES] = 1;
			_exit(memory[n * 4096 % BYTES] ^ 0x2a);
		}
		sum = mix(sum, wait_for(child));
	}
	release(memory, BYTES);
	return sum;
}

/* 500 times this program again, which ends at once (see main.c). */
uint64_t execs(double scale)
{
	uint64_t sum = 0;
	for (uint64_t n = scaled(scale, 500); n > 0; n--) {
		pid_t child = fork();
		if (child == 0) {
			execl("/proc/self/exe", "work", "exit", (char *)0);
			_exit(127);
		}
		sum = mix(sum, wait_for(child));
	}
	return sum;
}

static void exchange(int from, int to, uint64_t rounds, uint64_t *sum)
{
	for (uint64_t i = 0; i < rounds; i++) {
		uint64_t value;
		if (read(from, &value, sizeof value) != sizeof value)
			die("read from the pipe");
		*sum = mix(*sum, value);
		value = *sum;
		if (write(to, &value, sizeof value) != sizeof value)
			die("write to the pipe");
	}
}

/* 100 thousand times there and back between two processes. */
uint64_t pipes(double scale)
{
	int there[2], back[2];
	uint64_t rounds = scaled(scale, 100000), sum = 1, first = 0;
	if (pipe(there) || pipe(back))
		die("pipe");
	pid_t child = fork();
	if (child == 0) {
		/* Each holds only its own ends: a peer that died is an end of file. */
		close(there[1]);
		close(back[0]);
		exchange(there[0], back[1], rounds, &sum);
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	if (write(there[1], &first, sizeof first) != sizeof first)
		die("write to the pipe");
	exchange(back[0], there[1], rounds - 1, &sum);
	if (read(back[0], &first, sizeof first) != sizeof first)
		die("read from the pipe");
	close(there[1]);
	close(back[0]);
	return mix(mix(sum, first), wait_for(child));
}

static uint64_t counter;

static void *count_up(void *rounds)
{
	for (uint64_t i = *(uint64_t *)rounds; i > 0; i--)
		__atomic_fetch_add(&counter, i & 3, __ATOMIC_SEQ_CST);
	return 0;
}

/* Two threads add to one number, 10 million times each. */
uint64_t atomics(double scale)
{
	uint64_t rounds = scaled(scale, 10000000);
	pthread_t threads[2];
	counter = 0;
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], 0, count_up, &rounds))
			die("pthread_create");
	for (int i = 0; i < 2; i++)
		if (pthread_join(threads[i], 0))
			die("pthread_join");
	return mix(rounds, counter);
}
