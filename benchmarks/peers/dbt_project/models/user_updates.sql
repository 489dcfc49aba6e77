{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='day',
          indexes=[{'columns': ['day']}]) }}
select distinct day, updated_at, user_id, email, name, environment
from {{ source('raw', 'raw_user_updates') }}
where environment = 'production'
{% if is_incremental() %}
  and day >= '{{ var("first") }}' and day < '{{ var("end") }}'
{% endif %}
