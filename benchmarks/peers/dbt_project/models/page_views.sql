{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='day',
          indexes=[{'columns': ['day']}]) }}
select distinct
  day,
  (line ->> 'ts')::timestamp as ts,
  line ->> 'url' as url,
  line ->> 'environment' as environment,
  (line ->> 'user_id')::bigint as user_id
from {{ source('raw', 'raw_page_views') }}
where line ->> 'environment' = 'production'
{% if is_incremental() %}
  and day >= '{{ var("first") }}' and day < '{{ var("end") }}'
{% endif %}
