-- What both feeds are parsed with.

-- A moment in ISO 8601 with date and time, as UTC without a zone; null for any other text. Seconds and offset may be
-- missing, and the letters be small. DuckDB casts none of that but the whole form.
create or replace temp macro moment_of(t) as case
  when regexp_full_match(t, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}:\d{2}(\.\d+)?[Zz]?')
    then try_cast(upper(t) as timestamp)
  when regexp_full_match(t, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}[Zz]?')
    then try_cast(upper(t[:16]) || ':00' as timestamp)
  when regexp_full_match(t, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}:\d{2}(\.\d+)?[+-]([01]\d|2[0-3])(:?[0-5]\d)?')
    then try_cast(upper(t) as timestamptz) at time zone 'UTC'
  when regexp_full_match(t, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}[+-]([01]\d|2[0-3])(:?[0-5]\d)?')
    then try_cast(upper(t[:16]) || ':00' || t[17:] as timestamptz) at time zone 'UTC'
end;

-- Null, or nothing but white space as Unicode defines it. Few texts begin with a character that needs a closer look.
create or replace temp macro is_blank(t) as
  t is null or (t < '!' or t >= chr(133)) and regexp_full_match(t, '[\x{9}-\x{d}\x{85}\p{Z}]*');

create or replace temp macro is_email(t) as regexp_full_match(t, '{{email}}');

-- A rejected line as it is kept: without its end, without NUL, which Postgres cannot hold, and of a long one its first
-- 64 KiB, whole characters, and its size. A broken line is cut already.
create or replace temp macro kept_line(t, size, broken) as replace(case
  when size <= 65536 then regexp_replace(t, '\r?\n$', '')
  when broken then t || '… [' || size || ' bytes]'
  else coalesce(
    try(decode(encode(t)[:65536])), try(decode(encode(t)[:65535])),
    try(decode(encode(t)[:65534])), try(decode(encode(t)[:65533]))
  ) || '… [' || size || ' bytes]'
end, chr(0), '\x00');

-- The fields of a CSV record that is known to be one, with their quotes. Each match begins with a comma: an empty one
-- would not be told from the end of the field before it.
create or replace temp macro csv_fields(t) as
  regexp_extract_all(',' || rtrim(t, e'\r\n'), ',("(?:[^"]|"")*"|[^",\r\n]*)', 1);

create or replace temp macro unquoted(field) as
  case when starts_with(field, '"') then replace(field[2:-2], '""', '"') else field end;
