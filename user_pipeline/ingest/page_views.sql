-- A line of page views is one JSON object. DuckDB takes each own key as text, whatever its JSON type, so
-- what must be a string is checked against its JSON type where its text could be something else.
with parsed as (
  select
    object, line, text, broken,
    -- Not UTF-8, not an object, or not JSON: null.
    case when not broken and (text[1] = '{' or starts_with(ltrim(text, e' \t'), '{'))
      then try(from_json(text, '{"ts":"VARCHAR","url":"VARCHAR","environment":"VARCHAR","user_id":"VARCHAR"}'))
    end as j
  from lines
),
typed as (
  select
    object, line, text,
    case when j is null then not broken and trim(text, e' \t\r\n') = '' else false end as blank,
    j is not null
      and not contains(concat(j.ts, j.url, j.environment, j.user_id), chr(0)) as well_formed,
    j.ts as ts_text,
    case
      when regexp_full_match(j.ts, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}(:\d{2}(\.\d+)?)?[Zz]?')
        then try_cast(j.ts as timestamp)
      when regexp_full_match(j.ts, '\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):\d{2}(:\d{2}(\.\d+)?)?[+-]([01]\d|2[0-3])(:?[0-5]\d)?')
        then try_cast(j.ts as timestamptz) at time zone 'UTC'
    end as ts,
    case when regexp_matches(j.url, '^[\[{"tf\d-]') and json_type(text, '$.url') <> 'VARCHAR' then null
      else j.url end as url,
    case when regexp_matches(j.environment, '^[\[{"tf\d-]') and json_type(text, '$.environment') <> 'VARCHAR' then null
      else j.environment end as environment,
    j.user_id as user_id_text,
    try_cast(user_id_digits as bigint) as user_id,
    -- DuckDB's reader also takes trailing commas, NaN and infinities, which are not JSON. There are none in a line
    -- that is these four in this order and the user's digits.
    case when j is null or text = concat('{"ts": "', j.ts, '", "url": "', j.url, '", "environment": "', j.environment,
        '", "user_id": ', user_id_digits, e'}\n') then false
      else regexp_matches(text, ',\s*[}\]]|[nN][aA][nN]|[iI][nN][fF]') end as doubtful
  from (select *, case when regexp_full_match(j.user_id, '\d+') then j.user_id end as user_id_digits from parsed)
)
select
  object, line, ts, url, environment, user_id,
  case
    when blank then 'blank'
    when not well_formed then 'malformed'
    when ts is null then 'invalid_timestamp'
    when ts < $first_day or ts >= $end_of_range then 'out_of_range'
    when coalesce(user_id_text, '') = '' then 'missing_user_id'
    when user_id is null then 'invalid_user_id'
    when coalesce(url, '') = '' or url[1] = ' ' and trim(url) = '' then 'missing_url'
    when coalesce(environment, '') = '' or environment[1] = ' ' and trim(environment) = '' then 'missing_environment'
  end as reason,
  doubtful,
  case when reason is not null or doubtful then text end as text
from typed
