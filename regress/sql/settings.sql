--
-- pg_meminfo.readers
--
LOAD 'pg_meminfo';
SHOW pg_meminfo.readers;
SELECT name, setting, min_val, max_val, context, vartype FROM pg_settings WHERE name ~ '^pg_meminfo';
SET pg_meminfo.readers = 0;
SET pg_meminfo.readers = 17;
SET pg_meminfo.reader = 2;

-- The same rows with any number. The background writer and the checkpointer do not change their mappings.
CREATE TEMP TABLE quiet AS SELECT pid FROM pg_stat_activity WHERE backend_type IN ('background writer', 'checkpointer');
CREATE TEMP TABLE by_one AS
    SELECT pid, start_address, end_address, permissions, sys_path, mem_size FROM get_all_smaps() WHERE pid IN (SELECT pid FROM quiet);
DO $$
DECLARE
    differences int;
BEGIN
    FOR readers IN 2..16 LOOP
        PERFORM set_config('pg_meminfo.readers', readers::text, false);
        SELECT count(*) INTO differences FROM (
            (SELECT pid, start_address, end_address, permissions, sys_path, mem_size FROM get_all_smaps()
                WHERE pid IN (SELECT pid FROM quiet) EXCEPT ALL TABLE by_one)
            UNION ALL
            (TABLE by_one EXCEPT ALL SELECT pid, start_address, end_address, permissions, sys_path, mem_size FROM get_all_smaps()
                WHERE pid IN (SELECT pid FROM quiet))
        ) AS difference;
        IF differences <> 0 THEN
            RAISE EXCEPTION '% differences with % readers', differences, readers;
        END IF;
    END LOOP;
END
$$;
SELECT count(*) > 40 AS many FROM by_one;
SHOW pg_meminfo.readers;
RESET pg_meminfo.readers;
