/*
 * The bare read: opens, reads and closes the same files as an SQL function, as the same user, and does nothing else
 * with them. What the function costs beyond that is our own work.
 *
 * Each line of input is a task: the number of threads, a comma-separated list of files, and pids. Each file of each
 * process is read once. The answer is the seconds that it took and the number of bytes read. The pseudo-file
 * "maps+pagemap" stands for maps and for the entries of pagemap that belong to its private mappings.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PIDS = 8192, FILES = 8, BUFFER = 128 * 1024, MAPS = 16 * 1024 * 1024, THREADS = 16, RANGES = 65536 };

static char *pids[PIDS], *files[FILES];
static int pid_count, file_count;
static atomic_int next_pid;
static atomic_long bytes;

static long read_all(int fd, char *buffer)
{
	long sum = 0, count;

	while ((count = read(fd, buffer, BUFFER)) > 0)
		sum += count;
	return sum;
}

static long read_private(int directory, char *buffer, char *maps)
{
	static __thread struct { unsigned long start, end; } ranges[RANGES];
	unsigned long page = sysconf(_SC_PAGESIZE), start, end;
	long sum = 0, count;
	int range_count = 0, fd = openat(directory, "maps", O_RDONLY);

	if (fd < 0)
		return 0;
	while ((count = read(fd, maps + sum, MAPS - 1 - sum)) > 0)
		sum += count;
	maps[sum] = 0;
	close(fd);
	for (char *line = maps; *line; line = strchr(line, '\n') + 1) {
		char *at;

		start = strtoul(line, &at, 16);
		end = strtoul(at + 1, &at, 16);
		/* at points to the space before the permissions. Skipped: shared mappings, reservations, the vsyscall page. */
		if (at[4] != 'p' || !strncmp(at + 1, "---", 3) || start >> 63)
			continue;
		if (range_count && ranges[range_count - 1].end == start)
			ranges[range_count - 1].end = end;
		else
			ranges[range_count].start = start, ranges[range_count++].end = end;
	}
	if ((fd = openat(directory, "pagemap", O_RDONLY)) < 0)
		return 0;
	for (int i = 0; i < range_count; i++) {
		long at = ranges[i].start / page * 8, to = ranges[i].end / page * 8;

		for (; at < to && (count = pread(fd, buffer, to - at < BUFFER ? to - at : BUFFER, at)) > 0; at += count)
			sum += count;
	}
	close(fd);
	return sum;
}

static void *work(void *unused)
{
	char path[64], *buffer = malloc(BUFFER), *maps = malloc(MAPS);
	int i;

	while ((i = next_pid++) < pid_count) {
		int directory;

		snprintf(path, sizeof path, "/proc/%s", pids[i]);
		if ((directory = open(path, O_PATH | O_DIRECTORY)) < 0)
			continue;
		for (int f = 0; f < file_count; f++) {
			int fd;

			if (!strcmp(files[f], "maps+pagemap"))
				bytes += read_private(directory, buffer, maps);
			else if ((fd = openat(directory, files[f], O_RDONLY)) >= 0) {
				/* One read returns the whole of a small file. One read of maps or smaps returns at most a page. */
				bytes += strstr(files[f], "maps") ? read_all(fd, buffer) : read(fd, buffer, BUFFER);
				close(fd);
			}
		}
		close(directory);
	}
	free(buffer);
	free(maps);
	return unused;
}

int main(void)
{
	char *line = NULL, *word, *names, *rest;
	size_t size = 0;

	while (getline(&line, &size, stdin) > 0) {
		struct timespec from, to;
		pthread_t threads[THREADS];
		int count = atoi(strtok_r(line, " \n", &rest));

		names = strtok_r(NULL, " \n", &rest);
		for (pid_count = 0; (word = strtok_r(NULL, " \n", &rest)) && pid_count < PIDS;)
			pids[pid_count++] = word;
		for (file_count = 0; file_count < FILES && (word = strtok_r(names, ",", &names));)
			files[file_count++] = word;
		if (count < 1 || count > THREADS)
			errx(1, "%d threads", count);
		next_pid = 0;
		bytes = 0;
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int i = 1; i < count; i++)
			if (pthread_create(&threads[i], NULL, work, NULL))
				errx(1, "no thread");
		work(NULL);
		for (int i = 1; i < count; i++)
			pthread_join(threads[i], NULL);
		clock_gettime(CLOCK_MONOTONIC, &to);
		printf("%.9f %ld\n", to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9, bytes);
		fflush(stdout);
	}
	return 0;
}
