insert into public.page_recommendations_day (day) select day from snapshot
on conflict (is_only_row) do update set day = excluded.day
