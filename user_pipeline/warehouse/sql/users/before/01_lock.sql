-- One writer at a time; readers go on. The last two tables hold a copy of each e-mail and change along.
lock table public.users, public.users_daily, public.user_page_views, public.page_recommendations
in share row exclusive mode
