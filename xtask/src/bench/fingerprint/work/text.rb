draw = Random.new(ARGV[1].to_i)
lines = File.read(ARGV[0], 3_000_000).scrub.lines
loop do
  picked = lines.sample(5_000, random: draw)
  words = picked.flat_map { |line| line.scan(/\w+/) }.group_by(&:size)
  words.transform_values { |same| same.map(&:downcase).uniq.sort.join(",").gsub(/[aeiou]/, "*") }
end
