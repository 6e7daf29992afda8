/* Sets the time of day of one process off by as many seconds as the file CLOCK_OFFSET_FILE says. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	long result = syscall(SYS_clock_gettime, clock, now);
	const char *path = getenv("CLOCK_OFFSET_FILE");
	FILE *file = result == 0 && clock == CLOCK_REALTIME && path ? fopen(path, "r") : NULL;
	long offset_s = 0;

	if (file) {
		if (fscanf(file, "%ld", &offset_s) == 1)
			now->tv_sec += offset_s;
		fclose(file);
	}
	return (int)result;
}
