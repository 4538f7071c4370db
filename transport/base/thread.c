#include "transport/base/thread.h"

#include <signal.h>

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
