/* A service's program. Its directory (argv[1]) holds what each of its lives is, and what has become of them:
     lives   a line a life: nanoseconds it lasts (-1: for ever), c|s and a code or signal, whether it leaves a core,
             d|e|i on SIGTERM (dies, exits, ignores it), the code of that exit, nanoseconds until it
     zero    the moment at which its scenario begins, in nanoseconds of CLOCK_MONOTONIC
     starts  its own: a line for each start, its moment; and one for each end, negative
   A life is reckoned from the moment at which it should have begun, the nearest in the scenario's grid (argv[2]), so
   that small delays do not add up from one life to the next. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static long long grid, zero;
static int record;

static long long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static long long planned(long long moment)
{
    return zero + (moment - zero + grid / 2) / grid * grid;
}

static void note(long long moment)
{
    dprintf(record, "%lld\n", moment);
}

static void end(char how, int number, int core)
{
    const struct rlimit none = {0, 0}, any = {RLIM_INFINITY, RLIM_INFINITY};
    sigset_t all;

    note(-now());
    if (how == 'c')
        _exit(number);
    setrlimit(RLIMIT_CORE, core ? &any : &none);
    /* A core that is piped to a program takes no heed of the limit. */
    prctl(PR_SET_DUMPABLE, core);
    signal(number, SIG_DFL);
    sigfillset(&all);
    sigprocmask(SIG_UNBLOCK, &all, NULL);
    kill(getpid(), number);
    _exit(99);
}

/* Sleeps until then, or for ever (-1); whether a SIGTERM came that it listens for. */
static int wait_until(long long moment, const sigset_t *listens)
{
    for (;;) {
        long long left = moment < 0 ? 1000000000LL : moment - now();
        struct timespec span = {left / 1000000000LL, left % 1000000000LL};

        if (left <= 0)
            return 0;
        if (sigtimedwait(listens, NULL, &span) == SIGTERM)
            return 1;
    }
}

int main(int argc, char **argv)
{
    long long began = now(), lasts, lingers, ends;
    int number = 0, status, core, code;
    char how, on_term, line[128];
    sigset_t listens;
    FILE *file;

    if (argc < 3 || chdir(argv[1]))
        return 98;
    grid = atoll(argv[2]);
    prctl(PR_SET_TIMERSLACK, 1);
    record = open("starts", O_WRONLY | O_APPEND | O_CREAT, 0600);
    file = fopen("starts", "r");
    while (fgets(line, sizeof line, file))
        number += line[0] != '-';
    fclose(file);
    note(began);
    file = fopen("zero", "r");
    if (!file || fscanf(file, "%lld", &zero) != 1)
        return 98;
    fclose(file);
    file = fopen("lives", "r");
    do {
        if (!fgets(line, sizeof line, file))
            break;
        sscanf(line, "%lld %c%d %d %c%d %lld", &lasts, &how, &status, &core, &on_term, &code, &lingers);
    } while (number--);

    sigemptyset(&listens);
    if (on_term != 'd') {
        sigaddset(&listens, SIGTERM);
        sigprocmask(SIG_BLOCK, &listens, NULL);
    }
    ends = lasts < 0 ? -1 : planned(began) + lasts;
    while (wait_until(ends, &listens)) {
        long long then;

        if (on_term == 'i')
            continue;
        then = planned(now()) + lingers;
        if (ends < 0 || then < ends) {
            sigdelset(&listens, SIGTERM);
            wait_until(then, &listens);
            end('c', code, 0);
        }
    }
    end(how, status, core);
}
