#include "transport/base/thread.h"

#include <signal.h>
#include <stdio.h>

int thread_start(pthread_t *thread, void *(*main)(void *), void *argument)
{
    sigset_t all, before;
    int result;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(thread, NULL, main, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -result;
}

void thread_set_name(const char *role, int number)
{
    char name[16];

    if (number < 0)
        snprintf(name, sizeof(name), "%s", role);
    else
        snprintf(name, sizeof(name), "%s %d", role, number);
    pthread_setname_np(pthread_self(), name);
}
