#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <sys/types.h>
#include <sys/stat.h>

#define BODY(n)                                                                \
    static int work_##n(int *values, int length) {                             \
        int sum = SEED + n;                                                    \
        for (int i = 0; i < length; i++) {                                     \
            for (int j = i; j < length; j++) {                                 \
                if (values[i] > values[j]) {                                   \
                    int kept = values[i];                                      \
                    values[i] = values[j] * n;                                 \
                    values[j] = kept;                                          \
                }                                                              \
                sum += values[j] % (n + 3);                                    \
            }                                                                  \
        }                                                                      \
        return printf("%d", sum);                                              \
    }
#define TEN(n)                                                                 \
    BODY(n##0) BODY(n##1) BODY(n##2) BODY(n##3) BODY(n##4)                     \
    BODY(n##5) BODY(n##6) BODY(n##7) BODY(n##8) BODY(n##9)
TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)

int all(int *values, int length) {
    return work_10(values, length) + work_21(values, length) + work_32(values, length)
        + work_43(values, length) + work_54(values, length) + work_15(values, length);
}
