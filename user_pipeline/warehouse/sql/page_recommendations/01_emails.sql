-- As users has them now, which may be later than when the rows were made.
update incoming i set email = u.email
from incoming j left join public.users u on u.user_id = j.user_id
where i.user_id = j.user_id and i.rank = j.rank and j.email is distinct from u.email
