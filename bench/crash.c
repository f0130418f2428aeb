/* A program that ends, in ways of its own, and writes down how just before: one line of ~/ledger/NAME for each time.
   argv: NAME, and EACH: whenever it has ended so many times more it stays, under the name "waits", until SIGUSR1
   has it go on. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const int signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM};

int main(int argc, char **argv)
{
    const struct rlimit no_core = {0, 0};
    struct timespec now;
    sigset_t go_on;
    char path[256], text[128];
    int file, number = 0, code;
    char byte;

    if (argc < 3)
        return 99;
    sigemptyset(&go_on);
    sigaddset(&go_on, SIGUSR1);
    sigprocmask(SIG_BLOCK, &go_on, NULL);
    clock_gettime(CLOCK_REALTIME, &now);
    srand(now.tv_nsec ^ getpid());
    setrlimit(RLIMIT_CORE, &no_core);
    snprintf(path, sizeof path, "%s/ledger/%s", getenv("HOME"), argv[1]);
    file = open(path, O_RDWR | O_CREAT | O_APPEND, 0600);
    while (read(file, &byte, 1) == 1)
        number += byte == '\n';
    if (number > 0 && number % atoi(argv[2]) == 0) {
        prctl(PR_SET_NAME, "waits");
        sigwait(&go_on, &(int){0});
        prctl(PR_SET_NAME, "crash");
    }
    sigprocmask(SIG_UNBLOCK, &go_on, NULL);
    usleep(rand() % 1000000);
    code = rand() % 256;
    if (rand() % 3 == 0)
        code = -signals[rand() % (sizeof signals / sizeof *signals)];
    snprintf(text, sizeof text, "%s %c%d\n", getenv("INVOCATION_ID"), code < 0 ? 's' : 'c', abs(code));
    if (write(file, text, strlen(text)) < 0)
        return 99;
    if (code < 0) {
        signal(-code, SIG_DFL);
        kill(getpid(), -code);
    }
    return code;
}
