-- ARGV: owner, hand-off reservation in milliseconds.
leave(ARGV[1])
local is_held = redis.call('HGET', record, 'owner') == ARGV[1]
if is_held then
  redis.call('DEL', record)
  hand_over(milliseconds(), ARGV[2])
elseif redis.call('EXISTS', record) == 0 then
  hand_on(milliseconds(), ARGV[2])
end
return is_held and 1 or 0
