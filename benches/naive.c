/*
 * get_all_smaps() as a first version would be written, with fgets, sscanf, a matrix of strings, and tuples from
 * strings. The benchmark compares the extension with it. It does not check that a file is complete, and handles no
 * errors.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/backend_status.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(naive_smaps);

enum { COLUMNS = 33, FIRST_KEY = 9, WIDTH = 4608 };

static const char *const keys[] = {
	"Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty", "Private_Clean",
	"Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped",
	"Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked", "THPeligible",
};

static char cells[COLUMNS][WIDTH];

static void put(ReturnSetInfo *set, AttInMetadata *types)
{
	char *values[COLUMNS];
	HeapTuple tuple;

	for (int i = 0; i < COLUMNS; i++)
		values[i] = cells[i];
	tuple = BuildTupleFromCStrings(types, values);
	tuplestore_puttuple(set->setResult, tuple);
	heap_freetuple(tuple);
}

static void read_process(ReturnSetInfo *set, AttInMetadata *types, int pid)
{
	char path[64], line[WIDTH], key[64], value[64];
	bool in_mapping = false;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/smaps", pid);
	if (!(file = fopen(path, "r")))
		return;
	while (fgets(line, sizeof line, file)) {
		char start[32], end[32], permissions[8], offset[32], major[16], minor[16], inode[32], name[WIDTH];
		int fields = sscanf(line, "%31[0-9a-f]-%31[0-9a-f] %7s %31s %15[0-9a-f]:%15[0-9a-f] %31s %4607[^\n]",
				    start, end, permissions, offset, major, minor, inode, name);

		if (fields >= 7) {
			if (in_mapping)
				put(set, types);
			in_mapping = true;
			snprintf(cells[0], WIDTH, "%d", pid);
			strcpy(cells[1], start);
			strcpy(cells[2], end);
			strcpy(cells[3], permissions);
			strcpy(cells[4], offset);
			strcpy(cells[5], major);
			strcpy(cells[6], minor);
			strcpy(cells[7], inode);
			strcpy(cells[8], fields == 8 ? name : "");
			for (int i = FIRST_KEY; i < COLUMNS - 1; i++)
				strcpy(cells[i], "0");
			cells[COLUMNS - 1][0] = 0;
		} else if (!strncmp(line, "VmFlags:", 8))
			sscanf(line, "VmFlags: %4607[^\n]", cells[COLUMNS - 1]);
		else if (sscanf(line, "%63[^:]: %63s", key, value) == 2)
			for (int i = 0; i < lengthof(keys); i++)
				if (!strcmp(key, keys[i]))
					strcpy(cells[FIRST_KEY + i], value);
	}
	if (in_mapping)
		put(set, types);
	fclose(file);
}

Datum naive_smaps(PG_FUNCTION_ARGS)
{
	int count = pgstat_fetch_stat_numbackends();
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	AttInMetadata *types;

	InitMaterializedSRF(fcinfo, 0);
	types = TupleDescGetAttInMetadata(set->setDesc);
	for (int i = 1; i <= count; i++) {
#if PG_VERSION_NUM >= 160000
		LocalPgBackendStatus *entry = pgstat_get_local_beentry_by_index(i);
#else
		LocalPgBackendStatus *entry = pgstat_fetch_stat_local_beentry(i);
#endif
		if (entry && entry->backendStatus.st_procpid)
			read_process(set, types, entry->backendStatus.st_procpid);
	}
	return (Datum) 0;
}
