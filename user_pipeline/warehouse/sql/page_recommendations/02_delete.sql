-- Only what changes is written: most users get much the same from day to day.
delete from public.page_recommendations r
where not exists (
  select from incoming i
  where i.user_id = r.user_id and i.rank = r.rank
    and i.recommended_url = r.recommended_url and i.email is not distinct from r.email
)
