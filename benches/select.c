/* Executes one small prepared SELECT in several servers, in another order each time, and prints what each statement
 * costs:
 *
 *   select rounds socket-directory...
 *
 * A line for each server: median and quartiles of the server process's processor time, and median of the wall-clock
 * time, in ns a statement. The statement is that of pgbench -S; pgbench_accounts must exist. */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BLOCK = 120, ROUNDS_OF_CONNECTION = 50, MAX_SERVERS = 16 };

static PGconn *connections[MAX_SERVERS];
static FILE *schedstats[MAX_SERVERS];

static long long cpu_time(FILE *file)
{
    long long ns;

    rewind(file);
    if (fflush(file) != 0 || fscanf(file, "%lld", &ns) != 1)
        exit(1);
    return ns;
}

static long long wall_time(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void check(PGconn *connection, PGresult *result, ExecStatusType expected)
{
    if (PQresultStatus(result) != expected) {
        fprintf(stderr, "%s", PQerrorMessage(connection));
        exit(1);
    }
    PQclear(result);
}

static void block(PGconn *connection)
{
    for (int n = 0; n < BLOCK; n++) {
        char number[12];
        const char *values[] = {number};

        snprintf(number, sizeof number, "%d", 1 + rand() % 100000);
        check(connection, PQexecPrepared(connection, "s", 1, values, NULL, NULL, 0), PGRES_TUPLES_OK);
    }
}

static void open_connection(int s, const char *host)
{
    const char *keywords[] = {"host", "port", "user", "dbname", NULL};
    const char *values[] = {host, "5432", "postgres", "postgres", NULL};
    char path[64];

    if (schedstats[s]) {
        fclose(schedstats[s]);
        PQfinish(connections[s]);
    }
    connections[s] = PQconnectdbParams(keywords, values, 0);
    check(connections[s], PQprepare(connections[s], "s", "SELECT abalance FROM pgbench_accounts WHERE aid = $1", 1, NULL),
          PGRES_COMMAND_OK);
    snprintf(path, sizeof path, "/proc/%d/schedstat", PQbackendPID(connections[s]));
    schedstats[s] = fopen(path, "r");
    if (!schedstats[s])
        exit(1);
    for (int n = 0; n < 50; n++)
        block(connections[s]);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    int rounds = atoi(argv[1]), servers = argc - 2, order[MAX_SERVERS];
    double *cpu[MAX_SERVERS], *wall[MAX_SERVERS];

    if (rounds < 1 || servers < 1 || servers > MAX_SERVERS)
        return 1;
    for (int s = 0; s < servers; s++) {
        cpu[s] = calloc(rounds, sizeof(double));
        wall[s] = calloc(rounds, sizeof(double));
    }
    for (int s = 0; s < servers; s++)
        order[s] = s;
    for (int r = 0; r < rounds; r++) {
        /* Where the memory of a process lies matters, too. */
        for (int s = 0; s < servers && r % ROUNDS_OF_CONNECTION == 0; s++)
            open_connection(s, argv[s + 2]);
        /* What one leaves in the caches matters to the next, so none always follows the same. */
        for (int n = servers - 1; n > 0; n--) {
            int other = rand() % (n + 1), s = order[n];

            order[n] = order[other];
            order[other] = s;
        }
        for (int n = 0; n < servers; n++) {
            int s = order[n];
            long long cpu_before, wall_before;

            /* The caches belong to another server. */
            block(connections[s]);
            cpu_before = cpu_time(schedstats[s]);
            wall_before = wall_time();
            block(connections[s]);
            wall[s][r] = (double) (wall_time() - wall_before) / BLOCK;
            cpu[s][r] = (double) (cpu_time(schedstats[s]) - cpu_before) / BLOCK;
        }
    }
    for (int s = 0; s < servers; s++) {
        qsort(cpu[s], rounds, sizeof(double), compare);
        qsort(wall[s], rounds, sizeof(double), compare);
        printf("%.0f %.0f %.0f %.0f\n", cpu[s][rounds / 2], cpu[s][rounds / 4], cpu[s][rounds * 3 / 4], wall[s][rounds / 2]);
    }
    return 0;
}
