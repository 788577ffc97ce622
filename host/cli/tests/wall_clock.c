/* An LD_PRELOAD library that steps a program's wall clock: the file that WALL_CLOCK_AHEAD names
   contains the offset in seconds. All other clocks stay the machine's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long stepped_by(void)
{
	const char *path = getenv("WALL_CLOCK_AHEAD");
	char text[32];
	ssize_t length;
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (file < 0)
		return 0;
	length = read(file, text, sizeof text - 1);
	close(file);
	if (length <= 0)
		return 0;
	text[length] = 0;
	return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed = syscall(SYS_clock_gettime, clock, now);

	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += stepped_by();
	return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *to)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (to)
		*to = exact.tv_sec;
	return exact.tv_sec;
}
