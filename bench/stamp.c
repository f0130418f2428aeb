/* What is supervised: says when it began to run, to whoever listens, and then does nothing until it is killed.
   One criterion for all supervisors: a program runs when its own first line does. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    struct sockaddr_un clock = {.sun_family = AF_UNIX, .sun_path = "/run/bench/clock"};
    char text[128];

    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(text, sizeof text, "%s %d %lld", argc > 1 ? argv[1] : "?", getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    sendto(socket(AF_UNIX, SOCK_DGRAM, 0), text, strlen(text), 0, (struct sockaddr *)&clock, sizeof clock);
    for (;;)
        pause();
}
