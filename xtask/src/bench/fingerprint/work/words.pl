use strict;
while (1) {
    my %count;
    open(my $in, "<", $ARGV[0]) or die;
    while (my $line = <$in>) {
        $count{lc $1}++ while $line =~ /([A-Za-z_]{3,})/g;
    }
    close($in);
    my @top = sort { $count{$b} <=> $count{$a} } keys %count;
}
