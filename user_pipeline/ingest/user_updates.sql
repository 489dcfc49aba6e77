-- A record of user updates is RFC 4180 CSV of five fields; the text may hold quoted line ends. Where more than half of
-- an object's records have the same number of fields above five, or its header does, all of its records must have as
-- many: the further ones are kept as they are, named by the header or by their numbers.
with parsed as (
  select
    object, line, text, broken, size,
    -- A record that is no CSV gives five empty strings, as five empty fields do: told apart below.
    regexp_extract(
      text,
      '^("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*)\r?\n?$',
      ['updated_at', 'user_id', 'email', 'name', 'environment']
    ) as f
  from lines
),
records as materialized (
  select
    *,
    case
      when broken or contains(text, chr(0)) then null
      when concat(f.updated_at, f.user_id, f.email, f.name, f.environment) <> '' or trim(text, e'\r\n') = ',,,,' then 5
      when regexp_full_match(text, '(?:"(?:[^"]|"")*"|[^",\r\n]*)(?:,(?:"(?:[^"]|"")*"|[^",\r\n]*))*\r?\n?')
        then 1 + length(regexp_replace(text, '"(?:[^"]|"")*"|[^,]', '', 'g'))
    end as width
  from parsed
),
headers as (
  select object, len(fields) as width, [trim(unquoted(field)) for field in fields[6:]] as names
  from (select object, csv_fields(text) as fields from records where line = 1 and width > 5)
  where [lower(trim(unquoted(field))) for field in fields[:5]]
    = ['updated_at', 'user_id', 'email', 'name', 'environment']
),
majorities as (
  select object, width
  from (
    select object, width, count(*) as n, sum(count(*)) over (partition by object) as all_records
    from records group by object, width
  )
  where width > 5 and 2 * n > all_records
),
wide as (
  select
    object, coalesce(h.width, m.width) as width,
    -- Names that do not tell one field from another are none.
    case when len(list_distinct(list_filter(h.names, lambda x: x <> ''))) = len(h.names) then h.names
      else [number::varchar for number in range(6, coalesce(h.width, m.width) + 1)] end as names
  from headers h full join majorities m using (object)
),
fields as (
  select
    object, line, text, broken, size,
    coalesce(records.width = coalesce(wide.width, 5), false) as well_formed,
    case when wide.width is not null and records.width = wide.width then csv_fields(text) end as all_fields,
    coalesce(all_fields[1], f.updated_at) as updated_at,
    coalesce(all_fields[2], f.user_id) as user_id,
    coalesce(all_fields[3], f.email) as email,
    coalesce(all_fields[4], f.name) as name,
    coalesce(all_fields[5], f.environment) as environment,
    case when all_fields is not null
      then to_json(map(names, [unquoted(field) for field in all_fields[6:]]))::varchar end as rescued
  from records left join wide using (object)
),
typed as (
  select
    object, line, text, broken, size, well_formed, rescued,
    unquoted(updated_at) as updated_at_text,
    unquoted(user_id) as user_id_text,
    unquoted(email) as email,
    unquoted(name) as name,
    unquoted(environment) as environment,
    moment_of(updated_at_text) as updated_at,
    case when regexp_full_match(user_id_text, '\d+') then try_cast(user_id_text as bigint) end as user_id
  from fields
),
reasoned as (
  select
    *,
    case
      when not well_formed then 'malformed'
      when line = 1 and [lower(trim(x)) for x in [updated_at_text, user_id_text, email, name, environment]]
        = ['updated_at', 'user_id', 'email', 'name', 'environment'] then 'header'
      when updated_at is null then 'invalid_timestamp'
      when updated_at < $first_day or updated_at >= $end_of_range then 'out_of_range'
      when user_id_text = '' then 'missing_user_id'
      when user_id is null then 'invalid_user_id'
      when not is_email(email) then 'invalid_email'
      when is_blank(environment) then 'missing_environment'
    end as reason
  from typed
)
select
  object, line, updated_at, user_id, email, name, environment, reason,
  case when reason is null then rescued end as rescued,
  case when reason is not null then kept_line(text, size, broken) end as text
from reasoned
