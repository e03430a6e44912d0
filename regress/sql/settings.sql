--
-- pg_meminfo.readers
--
LOAD 'pg_meminfo';
SHOW pg_meminfo.readers;
SELECT name, setting, min_val, max_val, context, vartype FROM pg_settings WHERE name ~ '^pg_meminfo';
SET pg_meminfo.readers = 0;
SET pg_meminfo.readers = 17;
SET pg_meminfo.reader = 2;

-- Any number of readers gives the same rows, for processes that rarely change their mappings
CREATE FUNCTION quiet_mappings(readers int) RETURNS text LANGUAGE sql AS $$
    SELECT set_config('pg_meminfo.readers', readers::text, false);
    SELECT string_agg(format('%s %s %s %s %s', pid, start_address, end_address, permissions, sys_path), E'\n'
        ORDER BY pid, length(start_address), start_address)
    FROM get_all_smaps()
    WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type IN ('background writer', 'checkpointer'));
$$;
DO $$
DECLARE
    same boolean;
BEGIN
    FOR readers IN 2..16 LOOP
        FOR attempt IN 1..100 LOOP
            same := quiet_mappings(1) = quiet_mappings(readers);
            EXIT WHEN same;
        END LOOP;
        IF same IS NOT TRUE THEN
            RAISE EXCEPTION 'not the same with % readers', readers;
        END IF;
    END LOOP;
END
$$;
SELECT length(quiet_mappings(16)) > 2000 AS many;
SHOW pg_meminfo.readers;
RESET pg_meminfo.readers;
DROP FUNCTION quiet_mappings;
