delete from public.user_page_views_daily
where day >= (select first_day from slice) and day < (select end_day from slice)
