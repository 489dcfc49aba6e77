-- One writer at a time; readers go on. The writer of users takes the same lock, so no e-mail slips between.
lock table public.user_page_views, public.user_page_views_daily in share row exclusive mode
