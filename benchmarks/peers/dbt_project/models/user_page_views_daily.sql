{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='day',
          indexes=[{'columns': ['day']}, {'columns': ['user_id', 'url']}]) }}
select day, user_id, url, count(*) as count, max(ts) as last_viewed
from {{ ref('page_views') }}
{% if is_incremental() %}
where day >= '{{ var("first") }}' and day < '{{ var("end") }}'
{% endif %}
group by day, user_id, url
